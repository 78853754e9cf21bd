package vsockstream

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func startProxy(t *testing.T, tr transport) (a, b Conn, cancel func(), ended <-chan error) {
	t.Helper()
	nearA, a := tr.pair(t)
	nearB, b := socketPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ch := make(chan error, 1)
	go func() { ch <- Proxy(ctx, nearA, nearB) }()
	return a, b, cancel, ch
}

func TestProxy(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr transport) {
		a, b, _, ended := startProxy(t, tr)
		want := pattern(1 << 20)
		got := readAll(b)
		a.Write(want)
		a.CloseWrite()
		require.Equal(t, want, await(t, got, "request"))
		got = readAll(a)
		b.Write(want)
		b.CloseWrite()
		require.Equal(t, want, await(t, got, "response"))
		require.NoError(t, await(t, ended, "proxy"))
	})
}

// TestProxyClientGone: the server neither answers nor heeds a half-close.
func TestProxyClientGone(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr transport) {
		for _, halfFirst := range []bool{false, true} {
			a, b, _, ended := startProxy(t, tr)
			got := readAll(b)
			a.Write([]byte("question"))
			if halfFirst {
				a.CloseWrite()
				require.Equal(t, "question", string(await(t, got, "request")))
				time.Sleep(10 * time.Millisecond)
			}
			a.Close()
			require.NoError(t, await(t, ended, "proxy"))
			if !halfFirst {
				require.Equal(t, "question", string(await(t, got, "request")))
			}
		}
	})
}

func TestProxyCancel(t *testing.T) {
	checkLeaks(t)
	a, _, cancel, ended := startProxy(t, transport{})
	cancel()
	require.ErrorIs(t, await(t, ended, "proxy"), context.Canceled)
	require.Empty(t, await(t, readAll(a), "end"))
}
