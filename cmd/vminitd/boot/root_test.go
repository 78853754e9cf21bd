package boot

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	// Captured in a guest of Linux 6.1, in its initramfs as the kernel leaves it
	// and after this package has covered the root and mounted the first three.
	initramfsMounts = `1 1 0:2 / / rw - rootfs rootfs rw,size=231404k,nr_inodes=57851,inode64
`
	coveredMounts = `22 1 0:2 / / rw shared:1 - rootfs rootfs rw,size=231404k,nr_inodes=57851,inode64
23 22 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:2 - proc proc rw
25 22 0:5 / /dev rw,nosuid,relatime shared:4 - devtmpfs devtmpfs rw,size=231404k,nr_inodes=57851,mode=755,inode64
`
	// What a root on a disk looks like.
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
