package vmtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	mountapi "vminit/api/services/mount/v1"
	"vminit/internal/microvm"
	"vminit/vsockstream"
)

// TestDial is a guest that calls its host, as nerdbox's since April 2026 expect
// it to: -rpc=dial. Boot waits for somebody to listen on the usual RPC port, so
// that is its stream port.
func TestDial(t *testing.T) {
	Require(t)
	const port = 7025
	calls := make(chan net.Conn, 2)
	g, err := boot(func(c *microvm.Config) {
		c.Flags = []string{"-rpc=dial", fmt.Sprintf("-vsock-rpc-port=%d", port), fmt.Sprintf("-vsock-stream-port=%d", microvm.RPCPort)}
		c.Serve = map[uint32]func(net.Conn){port: func(c net.Conn) { calls <- c }}
	})
	require.NoError(t, err)
	g.Client.Close() // is a silent peer of the stream port
	ctx := Context(t)
	select {
	case c := <-calls:
		g = g.on(ttrpc.NewClient(c))
	case <-ctx.Done():
		g.VM.Kill()
		t.Fatalf("the guest has not called; its console ends with:%s", g.VM.Console(30))
	}
	t.Cleanup(func() {
		require.NoError(t, g.Shutdown())
		require.Empty(t, calls, "it calls once")
	})
	_, err = g.System.Info(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	_, err = g.VM.Dial(ctx, port)
	require.Error(t, err, "it does not listen as well")
	t.Run("logger", func(t *testing.T) { logger(ctx, t, g) })
}

// logger has a logging process of the guest's take a container's output
// (binary://): busybox from a disk that the host has mounted.
func logger(ctx context.Context, t *testing.T, g *Guest) {
	const tools, logs = "/run/tools", "/run/logs"
	_, err := mountapi.NewTTRPCMountClient(g.Client).MountAll(ctx, &mountapi.MountAllRequest{Mounts: []*mountapi.MountSpec{
		{Type: "erofs", Source: "/dev/vda", Target: tools, Options: []string{"ro"}}, {Type: "tmpfs", Source: "tmpfs", Target: logs}}})
	require.NoError(t, err)
	const script = `PATH=/run/tools/bin; cd /run/logs; echo "$CONTAINER_ID of $CONTAINER_NAMESPACE" >info
cat <&3 >out & cat <&4 >err & exec 3<&- 4<&-; echo ready >&5; exec 5>&-; wait; echo end >end`
	uri := "binary://" + tools + "/bin/busybox?sh=-c&" + url.QueryEscape(script)
	id := "c" + NewID()
	r := &taskv3.CreateTaskRequest{ID: id, Rootfs: RootMounts(), Stdout: uri, Stderr: uri}
	require.NoError(t, g.MakeBundle(ctx, r, marshal(t, Spec("/bin/sh", "-c", "probe burst 4M; echo failed >&2; exit 3"))))
	_, err = g.Task.Create(ctx, r)
	require.NoError(t, err)
	_, err = g.Task.Start(ctx, &taskv3.StartRequest{ID: id})
	require.NoError(t, err)
	w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: id})
	require.NoError(t, err)
	require.EqualValues(t, 3, w.ExitStatus)
	_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: id})
	require.NoError(t, err)

	require.Equal(t, id+" of default\nfailed\nend\n", output(ctx, t, g, "until test -e /logs/end; do sleep 0.1; done; cat /logs/info /logs/err /logs/end", logs))
	require.Equal(t, output(ctx, t, g, "probe burst 4M | probe sum", logs), output(ctx, t, g, "probe sum </logs/out", logs))
}

// output is what a script writes that has the logs at /logs. Its stream goes to
// the port that the guest of TestDial has for them.
func output(ctx context.Context, t *testing.T, g *Guest, script, logs string) string {
	t.Helper()
	stream := NewID()
	c, err := g.VM.Dial(ctx, microvm.RPCPort)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, vsockstream.Open(ctx, c, vsockstream.FramingU32, stream))
	spec := Spec("/bin/sh", "-c", script)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/logs", Type: "bind", Source: logs, Options: []string{"bind"}})
	r := &taskv3.CreateTaskRequest{ID: "c" + NewID(), Rootfs: RootMounts(), Stdout: "stream://" + stream}
	require.NoError(t, g.MakeBundle(ctx, r, marshal(t, spec)))
	_, err = g.Task.Create(ctx, r)
	require.NoError(t, err)
	_, err = g.Task.Start(ctx, &taskv3.StartRequest{ID: r.ID})
	require.NoError(t, err)
	text, err := io.ReadAll(c)
	require.NoError(t, err)
	w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: r.ID})
	require.NoError(t, err)
	require.Zero(t, w.ExitStatus, "%s", text)
	_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: r.ID})
	require.NoError(t, err)
	return string(text)
}
