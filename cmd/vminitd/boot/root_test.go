package boot

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Captured in guests of Linux 6.1 and, for the systemd host, 6.12.
const (
	initramfsMounts = `1 1 0:2 / / rw - rootfs none rw
`
	coveredMounts = `22 1 0:2 / / rw shared:1 - rootfs none rw
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:2 - proc proc rw
24 22 0:5 / /dev rw,nosuid,relatime shared:3 - devtmpfs devtmpfs rw,size=234k,nr_inodes=58k,mode=755
`
	diskMounts = `21 1 254:0 / / rw,relatime - ext4 /dev/root rw
`
)

func parse(t *testing.T, text string) []string {
	t.Helper()
	mounts, err := parseMountinfo(strings.NewReader(text))
	require.NoError(t, err)
	var missing []string
	for _, m := range Missing(Mounts(), mounts) {
		missing = append(missing, m.Target)
	}
	return missing
}

func TestRootHasNoParent(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, initramfsMounts: true, coveredMounts: false, diskMounts: false,
		initramfsMounts + coveredMounts: false, // the topmost counts
	} {
		mounts, err := parseMountinfo(strings.NewReader(text))
		require.NoError(t, err)
		require.Equal(t, want, rootHasNoParent(mounts), "%s", text)
	}
}

func TestMissing(t *testing.T) {
	all := parse(t, "")
	require.Len(t, all, len(Mounts()))
	require.Equal(t, all, parse(t, diskMounts))
	some := parse(t, coveredMounts)
	require.Len(t, some, len(Mounts())-2)
	require.NotContains(t, some, "/proc")
	require.NotContains(t, some, "/dev")
}

// A mount point must not be covered by a filesystem mounted after it.
func TestMountsParentsFirst(t *testing.T) {
	mounts := Mounts()
	for i, m := range mounts {
		for _, later := range mounts[i+1:] {
			require.False(t, strings.HasPrefix(m.Target, later.Target+"/"), "%s before %s", m.Target, later.Target)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(initramfsMounts)
	f.Add(coveredMounts)
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := parseMountinfo(strings.NewReader(text))
		if err != nil {
			return
		}
		rootHasNoParent(mounts)
		if len(Missing(Mounts(), mounts)) > len(Mounts()) {
			t.Error("more missing than there are")
		}
	})
}
