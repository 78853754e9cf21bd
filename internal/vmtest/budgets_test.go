package vmtest

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/initramfs"
)

// What a guest may cost, docs/design.md section 10. The memory is measured in
// TestFreshGuest.
const (
	maxDaemon  = 8 << 20  // bytes of vminitd, static and stripped
	maxImage   = 5 << 20  // bytes of an initramfs without modules, compressed
	maxIdleRSS = 10 << 20 // bytes resident in a guest that does nothing
)

func TestSizes(t *testing.T) {
	Require(t)
	a, err := artifacts()
	require.NoError(t, err)
	st, err := os.Stat(a.daemon)
	require.NoError(t, err)
	t.Logf("vminitd: %.2f MiB", mib(uint64(st.Size())))
	require.LessOrEqual(t, st.Size(), int64(maxDaemon))

	var image bytes.Buffer
	_, err = initramfs.Build(&image, initramfs.Config{Init: a.daemon})
	require.NoError(t, err)
	t.Logf("initramfs: %.2f MiB", mib(uint64(image.Len())))
	require.LessOrEqual(t, image.Len(), maxImage)
}
