package report

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestParseMount(t *testing.T) {
	const line = `31 24 0:27 /a\040b /mnt/x\134y rw,nosuid shared:5 master:1 - fuse.x src\011z rw,size=1,a=b c`
	m, err := parseMount(line)
	require.NoError(t, err)
	require.Equal(t, Mount{ID: 31, Parent: 24, Dev: "0:27", Root: "/a b", Target: `/mnt/x\y`,
		Options: []string{"rw", "nosuid"}, Optional: []string{"shared:5", "master:1"},
		Type: "fuse.x", Source: "src\tz", Super: []string{"rw", "size=1", "a=b c"}, Raw: line}, m)
	for _, bad := range []string{"", "1 2 0:1 / / rw", "1 2 0:1 / / rw - x", "x 2 0:1 / / rw - a b c"} {
		_, err := parseMount(bad)
		require.Error(t, err, bad)
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`31 24 0:27 /a\040b /m rw shared:5 - fuse.x src rw`)
	f.Add(`\9 - \`)
	f.Fuzz(func(t *testing.T, line string) {
		m, err := parseMount(line)
		if err == nil {
			require.Equal(t, line, m.Raw)
		}
	})
}

func TestBitNames(t *testing.T) {
	require.Equal(t, []string{}, bitNames(0))
	require.Equal(t, []string{"SIGHUP", "SIGTERM", "SIG64"}, bitNames(1|1<<14|1<<63))
	require.Equal(t, []string{"SIGHUP", "SIGINT"}, signalNames("1", "0000000000000002", "junk"))
}

func TestLookups(t *testing.T) {
	r := Report{
		Mounts:  []Mount{{ID: 1, Target: "/"}, {ID: 2, Target: "/x"}, {ID: 3, Target: "/x"}},
		Env:     []string{"A=1", "AB=2", "A=3=4"},
		Devices: []Device{{Path: "/dev/null"}},
	}
	m, ok := r.Mount("/x")
	require.True(t, ok)
	require.Equal(t, 3, m.ID)
	v, ok := r.Getenv("A")
	require.True(t, ok)
	require.Equal(t, "3=4", v)
	_, ok = r.Device("/dev/null")
	require.True(t, ok)
	for _, missing := range []func() bool{
		func() bool { _, ok := r.Mount("/y"); return ok },
		func() bool { _, ok := r.Getenv("B"); return ok },
		func() bool { _, ok := r.Device("/dev/mem"); return ok },
	} {
		require.False(t, missing())
	}
}

// In this process, which has a Go runtime of its own, the report must be
// complete and survive JSON.
func TestCollect(t *testing.T) {
	r := Collect([]string{"kernel/ostype"})
	require.False(t, r.Early)
	require.Equal(t, "Linux", r.Sysctls["kernel/ostype"])
	require.Contains(t, policies, uint32(unix.SCHED_NORMAL))
	for part := range r.Errors {
		require.Contains(t, []string{"init", "keyring"}, part, r.Errors[part]) // may be refused to us
	}
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var back Report
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, r.Mounts, back.Mounts)
	require.True(t, strings.HasPrefix(back.Cwd, "/"))
}
