package tasksvc

import (
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

const netDevHead = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
`

func TestParseNetDev(t *testing.T) {
	got, err := parseNetDev([]byte(netDevHead + `    lo: 190074970    7662    1    2    0     0          0         0 190074971    7663    3    4    0     0       0          0
eth0:1:18446744073709551615 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0
  cut: 1 2`))
	require.NoError(t, err)
	want := []*stats.NetworkStat{
		{Name: "lo", RxBytes: 190074970, RxPackets: 7662, RxErrors: 1, RxDropped: 2, TxBytes: 190074971, TxPackets: 7663, TxErrors: 3, TxDropped: 4},
		{Name: "eth0:1", RxBytes: 1<<64 - 1, TxBytes: 1},
	}
	require.Len(t, got, len(want))
	for i := range want {
		require.True(t, proto.Equal(want[i], got[i]), "%v", got[i])
	}
	for _, bad := range []string{"lo 1 2\n", "lo: 1 2\n", "lo: -1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"} {
		_, err := parseNetDev([]byte(netDevHead + bad))
		require.Error(t, err, bad)
	}
	got, err = parseNetDev(nil)
	require.NoError(t, err)
	require.Empty(t, got)
}

func FuzzParseNetDev(f *testing.F) {
	f.Add([]byte(netDevHead + "lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parseNetDev(data)
		if err != nil && all != nil {
			t.Fatal("an error and a result")
		}
		if _, err := proto.Marshal(&stats.Metrics{Network: all}); err != nil {
			t.Fatal(err)
		}
	})
}
