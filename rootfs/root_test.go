package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLinkToRoot: root.path may be a link, as with crun, whatever the propagation.
func TestLinkToRoot(t *testing.T) {
	requireRoot(t)
	root := busyboxRoot(t)
	require.NoError(t, os.WriteFile(root+"/mark", []byte("here\n"), 0o644))
	link := filepath.Join(t.TempDir(), "rootfs")
	require.NoError(t, os.Symlink(root, link))
	for _, propagation := range []string{"", "rslave", "rshared"} {
		s := defaultSpec(link)
		s.Linux.RootfsPropagation = propagation
		out, err := run(t, s, "cat /mark; pwd")
		require.NoError(t, err, propagation)
		require.Equal(t, "here\n/", out, propagation)
	}
}
