package vmtest

import (
	"fmt"
	"io"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"

	"vminit/vsockstream"
)

// A host may open a stream before or after the call that names it.
func TestStreamsAfterTheCall(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	for _, late := range []time.Duration{0, 300 * time.Millisecond} {
		id := NewID()
		r := &taskv3.CreateTaskRequest{ID: "c" + NewID(), Rootfs: RootMounts(), Stdout: "stream://" + id}
		require.NoError(t, g.MakeBundle(ctx, r, marshal(t, Spec("/bin/echo", "late"))))
		opened := make(chan vsockstream.Conn, 1)
		go func() {
			time.Sleep(late)
			c, err := g.VM.OpenStream(ctx, id)
			if err != nil {
				t.Errorf("open: %v", err)
			}
			opened <- c
		}()
		_, err := g.Task.Create(ctx, r)
		require.NoError(t, err)
		c := <-opened
		require.NotNil(t, c)
		_, err = g.Task.Start(ctx, &taskv3.StartRequest{ID: r.ID})
		require.NoError(t, err)
		data, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "late\n", string(data))
		_, err = g.Task.Wait(ctx, &taskv3.WaitRequest{ID: r.ID})
		require.NoError(t, err)
		_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: r.ID})
		require.NoError(t, err)
		c.Close()
	}
	g.Restored(ctx, t, base)
}

// A thousand streams are open at once, each with a process at its other end,
// and every one carries its own bytes.
func TestThousandStreams(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 5*time.Minute)
	base := g.Baseline(ctx, t)
	c := g.Running(ctx, t, Spec("/bin/sleep", "100000"))
	began := time.Now()
	all := make([]*Process, soak(1000, 300)/3+1)
	for i := range all {
		var err error
		all[i], err = g.Exec(ctx, c.ID(), Spec("/bin/sh", "-c", "read x; echo out $x; echo err $x >&2; read y; exit $y").Process, true)
		require.NoError(t, err)
		require.NoError(t, all[i].Start(ctx))
	}
	t.Logf("%d streams are open after %.1f s", 3*len(all), time.Since(began).Seconds())
	for i, p := range all {
		_, err := fmt.Fprintf(p.Stdin(), "%d\n", i)
		require.NoError(t, err)
	}
	for i, p := range all {
		_, err := fmt.Fprintf(p.Stdin(), "%d\n", i%250)
		require.NoError(t, err)
	}
	for i, p := range all {
		require.NoError(t, p.expect(ctx, Result{fmt.Sprintf("out %d\n", i), fmt.Sprintf("err %d\n", i), uint32(i % 250)}))
	}
	t.Logf("and have ended after %.1f s", time.Since(began).Seconds())
	g.end(t, c)
	g.Restored(ctx, t, base)
}
