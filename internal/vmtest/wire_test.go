package vmtest

import (
	"context"
	"io"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	systemapi "vminit/api/services/system/v1"
	"vminit/internal/microvm"
	"vminit/vsockstream"
)

// The readiness probe of existing hosts: ten zero bytes, on fresh connections,
// and any reply will do. The connection can be used afterwards.
func TestReadinessProbe(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	for range 5 {
		c, err := g.VM.Dial(ctx, microvm.RPCPort)
		require.NoError(t, err)
		for range 2 {
			_, err = c.Write(make([]byte, 10))
			require.NoError(t, err)
			require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
			header := make([]byte, 10)
			_, err = io.ReadFull(c, header)
			require.NoError(t, err)
			_, err = io.CopyN(io.Discard, c, int64(header[3])|int64(header[2])<<8)
			require.NoError(t, err)
		}
		require.NoError(t, c.Close())
	}
	g.Restored(ctx, t, base)
}

// Peers that connect and say nothing, or nonsense, stop nobody.
func TestRudePeers(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		var rude []vsockstream.Conn
		dial := func(port uint32, say string) {
			c, err := g.VM.Dial(ctx, port)
			require.NoError(t, err)
			rude = append(rude, c)
			_, _ = c.Write([]byte(say))
		}
		for range 40 {
			dial(microvm.StreamPort, "")
			dial(microvm.StreamPort, "\x00\x00")
			dial(microvm.RPCPort, "")
			dial(microvm.RPCPort, "GET / HTTP/1.1\r\n\r\n")
			dial(microvm.RPCPort, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
		}
		r, err := g.Run(ctx, Spec("/bin/echo", "still here"))
		require.NoError(t, err)
		require.Equal(t, "still here\n", r.Stdout)
		for _, c := range rude {
			c.Close()
		}
	})
}

// A host whose connection drops comes back and finds its containers.
func TestReconnect(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/sh", "-c", "read x; exit $x"), true)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	client, err := g.VM.Client(ctx)
	require.NoError(t, err)
	waits := make(chan error, 1)
	go func() {
		_, err := g.on(client).Task.Wait(ctx, &taskv3.WaitRequest{ID: p.ID()})
		waits <- err
	}()
	info, err := systemapi.NewTTRPCSystemClient(client).Info(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	require.NotEmpty(t, info.KernelVersion)
	client.Close()
	require.Error(t, <-waits)

	_, err = p.Stdin().Write([]byte("6\n"))
	require.NoError(t, err)
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Equal(t, uint32(6), r.Code)
	g.Restored(ctx, t, base)
}
