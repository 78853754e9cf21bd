package rootfs

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMountOptions(t *testing.T) {
	names := MountOptions()
	require.Subset(t, names, specOptions)
	for i, name := range names {
		o, err := parseOptions([]string{name})
		require.NoError(t, err, name)
		require.Empty(t, o.data, "%s would go to the file system", name)
		require.True(t, i == 0 || names[i-1] < name, "%s is out of order or there twice", name)
	}
}
