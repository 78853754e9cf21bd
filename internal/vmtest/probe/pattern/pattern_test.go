package pattern

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestFill(t *testing.T) {
	var want strings.Builder
	for off := 0; off < 4096; off += 16 {
		fmt.Fprintf(&want, "%015x\n", off)
	}
	got, err := io.ReadAll(NewReader(4096))
	require.NoError(t, err)
	require.Equal(t, want.String(), string(got))
	for _, n := range []int{0, 1, 15, 16, 17, 1000} { // from any offset
		p := make([]byte, n)
		Fill(p, 333)
		require.Equal(t, want.String()[333:333+n], string(p))
	}
}

func TestCheck(t *testing.T) {
	whole, err := io.ReadAll(NewReader(100_000))
	require.NoError(t, err)
	require.NoError(t, Check(iotest.HalfReader(bytes.NewReader(whole)), 100_000))
	require.NoError(t, Check(strings.NewReader(""), 0))
	require.ErrorContains(t, Check(bytes.NewReader(whole[:99_999]), 100_000), "ends after 99999")
	require.ErrorContains(t, Check(bytes.NewReader(whole), 99_999), "more than")
	lost := append(append([]byte{}, whole[:50_000]...), whole[50_016:]...)
	require.ErrorContains(t, Check(bytes.NewReader(lost), 99_984), "byte 500")
	require.ErrorIs(t, Check(iotest.ErrReader(io.ErrClosedPipe), 1), io.ErrClosedPipe)
}
