package vmtest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { Main(m) }

func TestHello(t *testing.T) {
	g := Shared(t)
	r, err := g.Run(Context(t), Spec("/bin/sh", "-c", "echo out; echo err >&2; exit 7"))
	require.NoError(t, err)
	require.Equal(t, Result{"out\n", "err\n", 7}, r)
}
