package vmtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	bundleapi "vminit/api/services/bundle/v1"
	guestapi "vminit/api/services/guest/v1"
	mountapi "vminit/api/services/mount/v1"
	forwardapi "vminit/api/services/socketforward/v1"
	stdioapi "vminit/api/services/stdio/v1"
	systemapi "vminit/api/services/system/v1"
	"vminit/internal/microvm"
	"vminit/tasksvc"
	"vminit/vsockstream"
)

// TestDropIn is a guest as nerdbox's hosts start it: a word that is no flag in
// front, stream ids as strings, bundles by Bundle.Create, its services beside
// the Task API.
func TestDropIn(t *testing.T) {
	Require(t)
	disk := filepath.Join(t.TempDir(), "disk")
	out, err := exec.Command("mkfs.ext4", "-q", disk, "64M").CombinedOutput()
	require.NoError(t, err, "%s (Debian: apt-get install e2fsprogs)", out)
	g := Boot(t, func(c *microvm.Config) {
		c.Flags = []string{"tsi_hijack", "-vsock-rpc-port=1025", "-vsock-stream-port=1026", "-vsock-cid=3", "-dev", "-stream-id=string"}
		c.Disks = append(c.Disks, microvm.Disk{Path: disk, Serial: "scratch"})
	})
	ctx := Context(t)
	d := &dropIn{g, ctx}
	t.Run("stdio by calls", d.stdio)
	t.Run("socket forward", d.forward)
	t.Run("transfer", d.transfer)
	t.Run("file systems", d.fileSystems)
	t.Run("looking inside", d.look)
	t.Run("CPU", d.cpu)
	t.Run("bundles", d.bundles)
}

type dropIn struct {
	*Guest
	ctx context.Context
}

func (d *dropIn) stream(ctx context.Context, id string) (vsockstream.Conn, error) {
	c, err := d.VM.Dial(ctx, microvm.StreamPort)
	if err != nil {
		return nil, err
	}
	if err := vsockstream.Open(ctx, c, vsockstream.FramingString, id); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// running starts a container without stdio, or with that of the URI.
func (d *dropIn) running(t *testing.T, id, uri string, spec *specs.Spec) {
	r := &taskv3.CreateTaskRequest{ID: id, Rootfs: RootMounts(), Stdin: uri, Stdout: uri, Stderr: uri}
	require.NoError(t, d.MakeBundle(d.ctx, r, marshal(t, spec)))
	_, err := d.Task.Create(d.ctx, r)
	require.NoError(t, err)
	_, err = d.Task.Start(d.ctx, &taskv3.StartRequest{ID: id})
	require.NoError(t, err)
}

func (d *dropIn) end(t *testing.T, id string) {
	_, err := d.Task.Kill(d.ctx, &taskv3.KillRequest{ID: id, Signal: 9, All: true})
	if status.Code(err) != codes.NotFound {
		require.NoError(t, err)
	}
	_, err = d.Task.Wait(d.ctx, &taskv3.WaitRequest{ID: id})
	require.NoError(t, err)
	_, err = d.Task.Delete(d.ctx, &taskv3.DeleteRequest{ID: id})
	require.NoError(t, err)
}

func (d *dropIn) stdio(t *testing.T) {
	d.running(t, "calls", "rpcio://calls/", Spec("/bin/sh", "-c", "cat; echo end >&2"))
	c := stdioapi.NewTTRPCStdIOClient(d.Client)
	want := bytes.Repeat([]byte("0123456789abcdef"), 32<<10)
	got := make(chan error, 1)
	go func() {
		s, err := c.ReadStdout(d.ctx, &stdioapi.ReadOutputRequest{ContainerId: "calls"})
		var all []byte
		for err == nil {
			var chunk *stdioapi.OutputChunk
			if chunk, err = s.Recv(); err == nil {
				all = append(all, chunk.Data...)
				if chunk.Eof {
					break
				}
			}
		}
		if err == nil && !bytes.Equal(all, want) {
			err = fmt.Errorf("%d bytes of %d", len(all), len(want))
		}
		got <- err
	}()
	for b := want; len(b) > 0; {
		w, err := c.WriteStdin(d.ctx, &stdioapi.WriteStdinRequest{ContainerId: "calls", Data: b[:min(len(b), 60_000)]})
		require.NoError(t, err)
		b = b[w.BytesWritten:]
	}
	_, err := c.CloseStdin(d.ctx, &stdioapi.CloseStdinRequest{ContainerId: "calls"})
	require.NoError(t, err)
	require.NoError(t, <-got)
	d.end(t, "calls")
}

// forward has a container talk to a service of the host's by a unix socket.
func (d *dropIn) forward(t *testing.T) {
	api := forwardapi.NewTTRPCSocketForwardClient(d.Client)
	const path = "/run/socketfwd/id.sock"
	_, err := api.Bind(d.ctx, &forwardapi.BindRequest{Sockets: []*forwardapi.Socket{{ForwardId: "id", SocketPath: path}}})
	require.NoError(t, err)
	s, err := api.Accept(d.ctx)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() {
		r, err := s.Recv()
		if err != nil {
			served <- err
			return
		}
		c, err := d.stream(d.ctx, r.StreamId)
		if err == nil {
			err = s.Send(&forwardapi.ConnectResult{StreamId: r.StreamId})
		}
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		data, err := io.ReadAll(c)
		fmt.Fprintf(c, "%s has %d bytes for you", r.ForwardId, len(data))
		served <- errors.Join(err, c.CloseWrite())
	}()
	spec := Spec("/bin/sleep", "1000")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/run/host.sock", Type: "bind", Source: path, Options: []string{"bind"}})
	d.running(t, "fwd", "", spec)
	defer d.end(t, "fwd")
	c := stdioapi.NewTTRPCStdIOClient(d.Client)
	_, err = d.Task.Exec(d.ctx, &taskv3.ExecProcessRequest{ID: "fwd", ExecID: "ask", Stdout: "rpcio://", Stderr: "rpcio://",
		Spec: &anypb.Any{Value: marshal(t, &specs.Process{Args: []string{"/bin/sh", "-c", "head -c 300000 /dev/zero | probe ask /run/host.sock"}, Cwd: "/", Env: []string{"PATH=/bin"}})}})
	require.NoError(t, err)
	_, err = d.Task.Start(d.ctx, &taskv3.StartRequest{ID: "fwd", ExecID: "ask"})
	require.NoError(t, err)
	out, err := c.ReadStdout(d.ctx, &stdioapi.ReadOutputRequest{ContainerId: "fwd", ExecId: "ask"})
	require.NoError(t, err)
	chunk, err := out.Recv()
	require.NoError(t, err)
	require.Equal(t, "id has 300000 bytes for you", string(chunk.Data))
	require.NoError(t, <-served)
	// Limits can change while it runs; there is a memory controller here.
	_, err = d.Task.Update(d.ctx, &taskv3.UpdateTaskRequest{ID: "fwd", Resources: &anypb.Any{Value: marshal(t, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(96 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(55))}})}})
	require.NoError(t, err)
	st := d.stats(d.ctx, t, "fwd")
	require.EqualValues(t, 96<<20, st.Memory.UsageLimit)
	require.EqualValues(t, 55, st.Pids.Limit)
	require.NoError(t, s.CloseSend())
}

func (d *dropIn) transfer(t *testing.T) {
	d.running(t, "files", "", Spec("/bin/sleep", "1000"))
	defer d.end(t, "files")
	api := transferapi.NewTTRPCTransferClient(d.Client)
	pack := func(m proto.Message) *anypb.Any {
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	big := bytes.Repeat([]byte("x"), 8<<20)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o750}))
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "dir/big", Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(big)), Uid: 5, Gid: 6, ModTime: time.Unix(1e9, 5)}))
	w.Write(big)
	require.NoError(t, w.Close())

	c, err := d.stream(d.ctx, "in")
	require.NoError(t, err)
	sent := make(chan error, 1)
	began := time.Now()
	go func() {
		w := tasksvc.NewTransferWriter(c)
		_, err := w.Write(archive.Bytes())
		sent <- errors.Join(err, w.CloseWrite())
	}()
	_, err = api.Transfer(d.ctx, &transferapi.TransferRequest{Source: pack(&transfertypes.ReadStream{Stream: "in"}),
		Destination: pack(&transfertypes.ContainerPath{ContainerID: "files", Path: "/dev/shm/new", PreserveOwnership: true})})
	require.NoError(t, err)
	require.NoError(t, <-sent)
	t.Logf("in: %.1f MB/s", float64(archive.Len())/1e6/time.Since(began).Seconds())
	c.Close()

	c, err = d.stream(d.ctx, "out")
	require.NoError(t, err)
	defer c.Close()
	done := make(chan error, 1)
	began = time.Now()
	go func() {
		_, err := api.Transfer(d.ctx, &transferapi.TransferRequest{Source: pack(&transfertypes.ContainerPath{ContainerID: "files", Path: "/dev/shm/new/dir"}),
			Destination: pack(&transfertypes.WriteStream{Stream: "out"})})
		done <- err
	}()
	data, err := io.ReadAll(tasksvc.NewTransferReader(c))
	require.NoError(t, err)
	require.NoError(t, <-done)
	t.Logf("out: %.1f MB/s", float64(len(data))/1e6/time.Since(began).Seconds())
	r := tar.NewReader(bytes.NewReader(data))
	h, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, "dir/", h.Name)
	h, err = r.Next()
	require.NoError(t, err)
	require.Equal(t, []any{"dir/big", int64(0o640), 5, 6}, []any{h.Name, h.Mode, h.Uid, h.Gid})
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, got))
}

// fileSystems freezes, thaws and trims an ext4.
func (d *dropIn) fileSystems(t *testing.T) {
	const at = "/run/scratch"
	_, err := mountapi.NewTTRPCMountClient(d.Client).MountAll(d.ctx, &mountapi.MountAllRequest{Mounts: []*mountapi.MountSpec{{Type: "ext4", Source: "/dev/vdb", Target: at}}})
	require.NoError(t, err)
	spec := Spec("/bin/sh", "-c", "while read x; do echo $x >/scratch/f && sync && echo wrote $x; done")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/scratch", Type: "bind", Source: at, Options: []string{"bind"}})
	d.running(t, "writer", "rpcio://", spec)
	c := stdioapi.NewTTRPCStdIOClient(d.Client)
	out, err := c.ReadStdout(d.ctx, &stdioapi.ReadOutputRequest{ContainerId: "writer"})
	require.NoError(t, err)
	lines := make(chan string, 10)
	go func() {
		for {
			chunk, err := out.Recv()
			if err != nil || chunk.Eof {
				return
			}
			lines <- string(chunk.Data)
		}
	}()
	write := func(word string) {
		_, err := c.WriteStdin(d.ctx, &stdioapi.WriteStdinRequest{ContainerId: "writer", Data: []byte(word + "\n")})
		require.NoError(t, err)
	}
	blocked := func() {
		select {
		case line := <-lines:
			t.Fatalf("a frozen file system was written to: %s", line)
		case <-time.After(500 * time.Millisecond):
		}
	}
	write("one")
	require.Equal(t, "wrote one\n", <-lines)
	_, err = d.API.ThawFS(d.ctx, &guestapi.ThawFSRequest{Path: at})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
	_, err = d.API.FreezeFS(d.ctx, &guestapi.FreezeFSRequest{Path: at})
	require.NoError(t, err)
	_, err = d.API.FreezeFS(d.ctx, &guestapi.FreezeFSRequest{Path: at})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
	write("two")
	blocked()
	_, err = d.API.ThawFS(d.ctx, &guestapi.ThawFSRequest{Path: at})
	require.NoError(t, err)
	require.Equal(t, "wrote two\n", <-lines)
	_, err = d.API.FreezeFS(d.ctx, &guestapi.FreezeFSRequest{Path: at, ThawAfter: durationpb.New(2 * time.Second)})
	require.NoError(t, err)
	write("three")
	blocked()
	require.Equal(t, "wrote three\n", <-lines, "it thaws by itself")
	_, err = d.API.TrimFS(d.ctx, &guestapi.TrimFSRequest{Path: at})
	if err != nil { // the disk has no discard: the kernel says so
		require.Equal(t, codes.Unimplemented, status.Code(err), err)
	}
	_, err = d.API.Sync(d.ctx, &guestapi.SyncRequest{Path: at})
	require.NoError(t, err)
	d.Guest.Task.CloseIO(d.ctx, &taskv3.CloseIORequest{ID: "writer", Stdin: true})
	d.end(t, "writer")
	// Left frozen: the end of the guest, which Boot checks, thaws it.
	_, err = d.API.FreezeFS(d.ctx, &guestapi.FreezeFSRequest{Path: at})
	require.NoError(t, err)
}

func (d *dropIn) look(t *testing.T) {
	s, err := d.API.KernelLog(d.ctx, &guestapi.KernelLogRequest{})
	require.NoError(t, err)
	n, found := 0, false
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		n++
		found = found || strings.Contains(r.Text, "Linux version")
	}
	require.True(t, found, "%d records", n)
	m, err := d.API.Metrics(d.ctx, &emptypb.Empty{})
	require.NoError(t, err)
	require.Contains(t, m.Text, "vminit_containers{state=\"running\"} 0\n")
	require.True(t, strings.HasSuffix(m.Text, "# EOF\n"))
	f, err := d.VM.Dial(d.ctx, microvm.StreamPort)
	require.NoError(t, err)
	f.Close()
}

func (d *dropIn) cpu(t *testing.T) {
	for _, tc := range []struct {
		id   uint32
		code codes.Code
	}{{0, codes.InvalidArgument}, {99, codes.NotFound}, {1, codes.OK}, {1, codes.FailedPrecondition}} {
		_, err := d.System.OfflineCPU(d.ctx, &systemapi.OfflineCPURequest{CpuId: tc.id})
		require.Equal(t, tc.code, status.Code(err), "%d: %v", tc.id, err)
	}
	for _, code := range []codes.Code{codes.OK, codes.FailedPrecondition} {
		_, err := d.System.OnlineCPU(d.ctx, &systemapi.OnlineCPURequest{CpuId: 1})
		require.Equal(t, code, status.Code(err), err)
	}
	_, err := d.System.OfflineMemory(d.ctx, &systemapi.OfflineMemoryRequest{MemoryId: 1 << 30})
	require.Equal(t, codes.NotFound, status.Code(err), err)
}

// bundles: those of containers that are gone are gone.
func (d *dropIn) bundles(t *testing.T) {
	_, err := d.Bundle.Create(d.ctx, &bundleapi.CreateRequest{Id: "calls"})
	require.NoError(t, err, "the name of a container that has been deleted is free")
}
