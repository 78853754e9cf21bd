package netup

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func requireContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}
