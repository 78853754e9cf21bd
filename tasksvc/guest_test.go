package tasksvc

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestapi "vminit/api/services/guest/v1"
)

func TestParseKernelRecord(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want *guestapi.KernelLogRecord
	}{
		{"7,160,424069,-;pci_root PNP0A03:00: host bridge\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n",
			&guestapi.KernelLogRecord{Level: 7, Sequence: 160, TimestampUs: 424069, Text: "pci_root PNP0A03:00: host bridge",
				Fields: map[string]string{"SUBSYSTEM": "acpi", "DEVICE": "+acpi:PNP0A03:00"}}},
		{"12,339,5140900,c,caller=T1,more;a;b=c, d\n", &guestapi.KernelLogRecord{Level: 4, Facility: 1, Sequence: 339, TimestampUs: 5140900, Text: "a;b=c, d"}},
		{"6,1,2;", &guestapi.KernelLogRecord{Level: 6, Sequence: 1, TimestampUs: 2}},
		{"6,1,2,-;\xff\n X=\xfe\nno field\n =\n", &guestapi.KernelLogRecord{Level: 6, Sequence: 1, TimestampUs: 2, Text: "\uFFFD", Fields: map[string]string{"X": "\uFFFD", "": ""}}},
	} {
		got, err := parseKernelRecord([]byte(tc.in))
		require.NoError(t, err, tc.in)
		require.Equal(t, tc.want.String(), got.String())
	}
	for _, bad := range []string{"", "6,1,2", "6,1;x", "a,1,2,-;x", "6,-1,2,-;x", "6,1,99999999999999999999,-;x", ";"} {
		_, err := parseKernelRecord([]byte(bad))
		require.Error(t, err, bad)
	}
}

func FuzzKernelRecord(f *testing.F) {
	f.Add([]byte("7,160,424069,-;text\n SUBSYSTEM=acpi\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseKernelRecord(data)
		if (r == nil) != (err != nil) {
			t.Fatal(r, err)
		}
	})
}

// metricLine is what a line of OpenMetrics text may be.
var metricLine = regexp.MustCompile(`^(# (TYPE|UNIT|HELP) [a-z_]+ .+|# EOF|[a-z_]+(\{[a-z]+="([^"\\\n]|\\["\\n])*"(,[a-z]+="([^"\\\n]|\\["\\n])*")*\})? [0-9.]+)$`)

func checkMetrics(t testing.TB, text string) map[string]float64 {
	t.Helper()
	values, family := map[string]float64{}, ""
	require.True(t, strings.HasSuffix(text, "\n# EOF\n"))
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		require.Regexp(t, metricLine, line)
		if f := strings.Fields(line); f[0] == "#" {
			if f[1] == "TYPE" {
				family = f[2]
			}
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		require.True(t, strings.HasPrefix(line, family), "%q is not of the family %s", line, family)
		_, twice := values[line[:i]]
		require.False(t, twice, line)
		v, err := strconv.ParseFloat(line[i+1:], 64)
		require.NoError(t, err)
		values[line[:i]] = v
	}
	return values
}

func TestOpenMetrics(t *testing.T) {
	m := new(openMetrics)
	m.gauge("x_bytes", "Things.")
	m.value(18446744073709551615)
	m.counter("y_seconds", "Time.")
	m.seconds(1_500_000, 1e6, label{"a", "q\"b\\c\nd"}, label{"b", ""})
	require.Equal(t, `# TYPE x_bytes gauge
# UNIT x_bytes bytes
# HELP x_bytes Things.
x_bytes 18446744073709551615
# TYPE y_seconds counter
# UNIT y_seconds seconds
# HELP y_seconds Time.
y_seconds_total{a="q\"b\\c\nd",b=""} 1.5
# EOF
`, m.text())
	checkMetrics(t, m.text())
}

func TestMetrics(t *testing.T) {
	h := newHost(t)
	h.running("c1", testSpec("sleep 1000"))
	g := NewGuest(GuestConfig{Events: h.events, Tasks: h.Service, Logger: discardLog()})
	defer g.Close()
	r, err := g.Metrics(context.Background(), &emptypb.Empty{})
	require.NoError(t, err)
	v := checkMetrics(t, r.Text)
	require.Equal(t, 1.0, v[`vminit_containers{state="running"}`], r.Text)
	require.Equal(t, 0.0, v[`vminit_containers{state="paused"}`])
	require.Equal(t, 2.0, v[`vminit_events_published_total`])
	require.Contains(t, v, `vminit_container_cpu_seconds_total{namespace="default",id="c1",mode="user"}`)
	for _, name := range []string{"vminit_goroutines", "vminit_open_fds", "vminit_threads", "vminit_resident_bytes", "vminit_guest_uptime_seconds", `vminit_guest_memory_bytes{kind="MemTotal"}`} {
		require.Positive(t, v[name], name)
	}
	require.InDelta(t, countFds(t), v["vminit_open_fds"], 3)
}

// logStream takes kernel records.
type logStream struct {
	guestapi.TTRPCGuest_KernelLogServer
	records []*guestapi.KernelLogRecord
	more    chan struct{}
}

func (s *logStream) Send(r *guestapi.KernelLogRecord) error {
	s.records = append(s.records, r)
	if s.more != nil {
		s.more <- struct{}{}
	}
	return nil
}

func TestKernelLog(t *testing.T) {
	requireRoot(t)
	g := NewGuest(GuestConfig{Logger: discardLog()})
	if f, err := os.Open("/dev/kmsg"); err != nil {
		t.Skip("no kernel log here") // the guest has one
	} else {
		f.Close()
	}
	all := &logStream{}
	require.NoError(t, g.KernelLog(context.Background(), &guestapi.KernelLogRequest{}, all))
	require.NotEmpty(t, all.records)
	for i := 1; i < len(all.records); i++ {
		require.Greater(t, all.records[i].Sequence, all.records[i-1].Sequence)
	}
	last := all.records[len(all.records)-1]
	tail := &logStream{}
	require.NoError(t, g.KernelLog(context.Background(), &guestapi.KernelLogRequest{FromSequence: last.Sequence}, tail))
	require.NotEmpty(t, tail.records)
	require.Equal(t, last.String(), tail.records[0].String())

	// One that follows ends with its caller, and with the daemon.
	for _, end := range []func(cancel func()){func(cancel func()) { cancel() }, func(func()) { g.Close() }} {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		follow := &logStream{more: make(chan struct{}, 1)}
		ended := make(chan error, 1)
		go func() {
			ended <- g.KernelLog(ctx, &guestapi.KernelLogRequest{Follow: true, FromSequence: last.Sequence}, follow)
		}()
		<-follow.more
		end(cancel)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("it goes on")
		}
	}
}

// What a file system cannot do is UNIMPLEMENTED, a path that is not there
// NOT_FOUND. On ext4 see internal/vmtest.
func TestGuestFSErrors(t *testing.T) {
	g := NewGuest(GuestConfig{Logger: discardLog()})
	defer g.Close()
	before := countFds(t)
	ctx := context.Background()
	freeze := func(r *guestapi.FreezeFSRequest) error { _, err := g.FreezeFS(ctx, r); return toStatus(err) }
	for _, path := range []string{"", "relative"} {
		require.Equal(t, codes.InvalidArgument, status.Code(freeze(&guestapi.FreezeFSRequest{Path: path})))
	}
	require.Equal(t, codes.NotFound, status.Code(freeze(&guestapi.FreezeFSRequest{Path: "/nosuch/path"})))
	require.Equal(t, codes.InvalidArgument, status.Code(freeze(&guestapi.FreezeFSRequest{Path: "/", ThawAfter: durationpb.New(-1)})))
	code := status.Code(freeze(&guestapi.FreezeFSRequest{Path: "/proc"}))
	require.Contains(t, []codes.Code{codes.Unimplemented, codes.PermissionDenied}, code)
	_, err := g.ThawFS(ctx, &guestapi.ThawFSRequest{Path: "/proc"})
	require.Contains(t, []codes.Code{codes.FailedPrecondition, codes.PermissionDenied, codes.Unimplemented}, status.Code(toStatus(err)), err)
	_, err = g.TrimFS(ctx, &guestapi.TrimFSRequest{Path: "/proc"})
	require.Contains(t, []codes.Code{codes.Unimplemented, codes.PermissionDenied, codes.Unknown}, status.Code(toStatus(err)), err)
	_, err = g.SetTime(ctx, &guestapi.SetTimeRequest{})
	require.Equal(t, codes.InvalidArgument, status.Code(toStatus(err)))
	_, err = g.SetTime(ctx, &guestapi.SetTimeRequest{Time: timestamppb.New(time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC))})
	require.Equal(t, codes.InvalidArgument, status.Code(toStatus(err)))
	_, err = g.Sync(ctx, &guestapi.SyncRequest{Path: t.TempDir()})
	require.NoError(t, err)
	_, err = g.Sync(ctx, &guestapi.SyncRequest{Path: filepath.Join(t.TempDir(), "nosuch")})
	require.Error(t, err)
	require.Equal(t, before, countFds(t))
}
