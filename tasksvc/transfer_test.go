package tasksvc

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/vsockstream"
)

// transferHost is a host with streams that copies files.
type transferHost struct {
	*host
	api     transferapi.TTRPCTransferService
	streams string
}

func newTransferHost(t *testing.T) *transferHost {
	h := newHost(t)
	hub := vsockstream.NewHub(vsockstream.HubConfig{Framing: vsockstream.FramingString})
	t.Cleanup(func() { hub.Close() })
	x := &transferHost{host: h, streams: "unix://" + h.fifos + "/streams"}
	l, err := vsockstream.ListenConfig{}.Listen(x.streams)
	require.NoError(t, err)
	go hub.Serve(context.Background(), l)
	x.api = transferapi.NewTTRPCTransferClient(h.serve(NewTransfer(h.Service, hub).Register))
	return x
}

var nextTransfer int

func (h *transferHost) stream() (string, vsockstream.Conn) {
	nextTransfer++
	id := fmt.Sprintf("transfer-%d", nextTransfer)
	c, err := vsockstream.Dial(h.ctx(), h.streams)
	require.NoError(h.t, err)
	require.NoError(h.t, vsockstream.Open(h.ctx(), c, vsockstream.FramingString, id))
	return id, c
}

func (h *transferHost) transfer(src, dst proto.Message) error {
	r := &transferapi.TransferRequest{}
	for m, to := range map[proto.Message]**anypb.Any{src: &r.Source, dst: &r.Destination} {
		a, err := containerdAny(m)
		require.NoError(h.t, err)
		*to = a
	}
	_, err := h.api.Transfer(h.ctx(), r)
	return err
}

// out copies out of a container.
func (h *transferHost) out(p *transfertypes.ContainerPath) ([]byte, error) {
	id, c := h.stream()
	defer c.Close()
	type result struct {
		data []byte
		err  error
	}
	got := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(NewTransferReader(c))
		got <- result{data, err}
	}()
	err := h.transfer(p, &transfertypes.WriteStream{Stream: id, MediaType: mediaTypeTar})
	r := <-got
	if err == nil {
		err = r.err
	}
	return r.data, err
}

// in copies into a container.
func (h *transferHost) in(p *transfertypes.ContainerPath, archive []byte) error {
	id, c := h.stream()
	defer c.Close()
	go func() {
		w := NewTransferWriter(c)
		if _, err := w.Write(archive); err == nil {
			w.CloseWrite()
		}
	}()
	return h.transfer(&transfertypes.ReadStream{Stream: id, MediaType: mediaTypeTar}, p)
}

// list describes the members of an archive.
func list(t testing.TB, data []byte) map[string]*tar.Header {
	all := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		all[h.Name] = h
	}
}

func TestTransferRoundTrip(t *testing.T) {
	h := newTransferHost(t)
	h.running("c1", testSpec("sleep 1000"))
	root := h.rootOf("c1")
	dir := root + "/tmp/tree"
	require.NoError(t, os.MkdirAll(dir+"/sub/deep", 0o755))
	write := func(name, text string, mode os.FileMode) {
		require.NoError(t, os.WriteFile(dir+"/"+name, []byte(text), 0o600))
		require.NoError(t, os.Chmod(dir+"/"+name, mode))
	}
	write("file", "content", 0o640)
	write("setuid", "#!", 0o755|os.ModeSetuid)
	require.NoError(t, os.Chown(dir+"/file", 1000, 1001))
	require.NoError(t, os.Link(dir+"/file", dir+"/sub/hard"))
	require.NoError(t, os.Symlink("/etc/passwd", dir+"/absolute"))
	require.NoError(t, os.Symlink("../../../../..", dir+"/sub/up"))
	require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o622))
	require.NoError(t, unix.Setxattr(dir+"/file", "user.note", []byte("a\x00b"), 0))
	capability := append([]byte{1, 0, 0, 2, 0, 4, 0, 0}, make([]byte, 12)...)
	require.NoError(t, unix.Setxattr(dir+"/setuid", "security.capability", capability, 0))
	l, err := net.Listen("unix", dir+"/socket")
	require.NoError(t, err)
	defer l.Close()
	f, err := os.Create(dir + "/sub/sparse")
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("middle"), 5<<20)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(20<<20))
	require.NoError(t, f.Close())
	when := time.Unix(1600000000, 123456789)
	for _, name := range []string{"file", "sub/sparse", "sub/deep", "sub", ""} {
		require.NoError(t, os.Chtimes(dir+"/"+name, when, when))
	}
	fds := heldFds(t)

	data, err := h.out(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp/tree"})
	require.NoError(t, err)
	require.Less(t, len(data), 1<<20, "holes are not sent")
	all := list(t, data)
	require.Len(t, all, 10)
	require.EqualValues(t, 0o4755, all["tree/setuid"].Mode)
	require.EqualValues(t, 20<<20, all["tree/sub/sparse"].Size)
	require.NotContains(t, all, "tree/socket")
	hard, file := all["tree/sub/hard"], all["tree/file"]
	if hard.Typeflag != tar.TypeLink {
		hard, file = file, hard
	}
	require.EqualValues(t, tar.TypeLink, hard.Typeflag)
	require.Equal(t, file.Name, hard.Linkname)
	require.Equal(t, []int{1000, 1001}, []int{file.Uid, file.Gid})

	for _, owners := range []bool{true, false} {
		to := fmt.Sprintf("/new/%t", owners)
		require.NoError(t, h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: to, PreserveOwnership: owners}, data))
		back, err := h.out(&transfertypes.ContainerPath{ContainerID: "c1", Path: to + "/tree"})
		require.NoError(t, err)
		again := list(t, back)
		require.Len(t, again, len(all))
		for name, want := range all {
			got := again[name]
			require.NotNil(t, got, name)
			if want.Typeflag == tar.TypeLink || got.Typeflag == tar.TypeLink {
				continue // which of the two comes first is the directory's affair
			}
			if !owners {
				require.Equal(t, []int{0, 0}, []int{got.Uid, got.Gid})
				got.Uid, got.Gid = want.Uid, want.Gid
			}
			if want.Typeflag == tar.TypeSymlink {
				got.ModTime = want.ModTime
			}
			require.True(t, want.ModTime.Equal(got.ModTime), "%s: %v, %v", name, want.ModTime, got.ModTime)
			require.Equal(t, []any{want.Typeflag, want.Mode, want.Uid, want.Gid, want.Size, want.Linkname}, []any{got.Typeflag, got.Mode, got.Uid, got.Gid, got.Size, got.Linkname}, name)
			for key, value := range want.PAXRecords {
				if strings.HasPrefix(key, paxXattr) {
					require.Equal(t, value, got.PAXRecords[key], name)
				}
			}
		}
		var a, b unix.Stat_t
		require.NoError(t, unix.Stat(root+to+"/tree/file", &a))
		require.NoError(t, unix.Stat(root+to+"/tree/sub/hard", &b))
		require.Equal(t, a.Ino, b.Ino)
		require.NoError(t, unix.Stat(root+to+"/tree/sub/sparse", &a))
		require.Less(t, a.Blocks*512, int64(1<<20), "it is sparse again")
		content, err := os.ReadFile(root + to + "/tree/sub/sparse")
		require.NoError(t, err)
		require.Equal(t, "middle", string(content[5<<20:5<<20+6]))
	}
	// The container sees it, and it is the container's mounts that count.
	out, code := h.exec("c1", "look", "cat /new/false/tree/file; ls /dev | head -1", false)
	require.Zero(t, code)
	require.True(t, strings.HasPrefix(out, "content"))
	for deadline := time.Now().Add(5 * time.Second); heldFds(t) > fds; time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "%d descriptors, were %d", heldFds(t), fds)
	}
}

// rootOf is a container's root file system in the bundle.
func (h *host) rootOf(id string) string {
	st, err := h.State(h.ctx(), &taskv3.StateRequest{ID: id})
	require.NoError(h.t, err)
	return st.Bundle + "/rootfs"
}

func TestTransferPaths(t *testing.T) {
	h := newTransferHost(t)
	spec := testSpec("echo secret >/dev/shm-file; mkdir /dev/d; echo inner >/dev/d/f; sleep 1000")
	h.running("c1", spec)
	root := h.rootOf("c1")
	require.NoError(t, os.Symlink("/tmp", root+"/link"))
	require.NoError(t, os.WriteFile(root+"/tmp/x", []byte("x"), 0o600))
	require.Eventually(t, func() bool { // on a mount of the container's own
		data, err := h.out(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/dev/d"})
		return err == nil && len(list(t, data)) == 2
	}, 10*time.Second, 10*time.Millisecond)
	for path, want := range map[string][]string{
		"/tmp/x": {"x"}, "tmp/x": {"x"}, "/../../tmp/x": {"x"}, "/link": {"link"}, "/link/": {"link/", "link/x"}, "/dev/shm-file": {"shm-file"}, "/proc/1/comm": {"comm"},
	} {
		data, err := h.out(&transfertypes.ContainerPath{ContainerID: "c1", Path: path})
		require.NoError(t, err, path)
		var names []string
		for name := range list(t, data) {
			names = append(names, name)
		}
		require.ElementsMatch(t, want, names, path)
	}
	data, err := h.out(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/dev", NoWalk: true})
	require.NoError(t, err)
	require.Len(t, list(t, data), 1)
	// All of it: the kernel's file systems are there, but not what is in them.
	data, err = h.out(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/"})
	require.NoError(t, err)
	all := list(t, data)
	require.Contains(t, all, "./")
	require.Contains(t, all, "proc/")
	require.NotContains(t, all, "proc/1/")
	require.Contains(t, all, "bin/busybox")
	require.EqualValues(t, tar.TypeChar, all["dev/null"].Typeflag)

	for path, code := range map[string]codes.Code{
		"/nosuch": codes.NotFound, "/tmp/x/y": codes.NotFound, "/proc/1/root/etc": codes.Unknown, "/proc/1/exe/": codes.Unknown,
		strings.Repeat("/x", 3000): codes.InvalidArgument,
	} {
		_, err := h.out(&transfertypes.ContainerPath{ContainerID: "c1", Path: path})
		require.Equal(t, code, status.Code(err), "%.40s: %v", path, err)
	}
	_, err = h.out(&transfertypes.ContainerPath{ContainerID: "c2", Path: "/"})
	require.Equal(t, codes.NotFound, status.Code(err))
	require.Equal(t, codes.Unimplemented, status.Code(h.transfer(&transfertypes.ContainerPath{ContainerID: "c1"}, &transfertypes.ContainerPath{})))
	require.Equal(t, codes.Unimplemented, status.Code(h.transfer(&transfertypes.OCIRegistry{}, &transfertypes.WriteStream{})))
	require.Equal(t, codes.Unimplemented, status.Code(h.transfer(&transfertypes.ContainerPath{ContainerID: "c1"}, &transfertypes.WriteStream{MediaType: "application/zip"})))
	_, err = h.api.Transfer(h.ctx(), &transferapi.TransferRequest{})
	require.Equal(t, codes.InvalidArgument, status.Code(err))

	// Into a file: its content is replaced, its inode stays.
	var before, after unix.Stat_t
	require.NoError(t, unix.Stat(root+"/tmp/x", &before))
	one := archive(t, []*tarHeader{{name: "whatever", kind: tarRegular, size: 9, mode: 0o777}})
	require.NoError(t, h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp/x"}, one))
	require.NoError(t, unix.Stat(root+"/tmp/x", &after))
	require.Equal(t, before.Ino, after.Ino)
	require.EqualValues(t, 9, after.Size)
	two := archive(t, []*tarHeader{{name: "a", kind: tarRegular}, {name: "b", kind: tarRegular}})
	require.Equal(t, codes.InvalidArgument, status.Code(h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp/x"}, two)))
	require.Equal(t, codes.InvalidArgument, status.Code(h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp"}, []byte("no archive, just words"))))
	require.Equal(t, codes.NotFound, status.Code(h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp/x/y"}, one)))
}

// Read-only and user-namespaced containers; one that has ended; a host that
// goes away.
func TestTransferConditions(t *testing.T) {
	h := newTransferHost(t)
	one := archive(t, []*tarHeader{{name: "f", kind: tarRegular, size: 5, uid: 7, gid: 8, mode: 0o600}})
	ro := testSpec("sleep 1000")
	ro.Root.Readonly = true
	h.running("ro", ro)
	require.Equal(t, codes.PermissionDenied, status.Code(h.in(&transfertypes.ContainerPath{ContainerID: "ro", Path: "/tmp"}, one)))

	user := testSpec("sleep 1000")
	fullUserNS(user)
	user.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: 1, HostID: 100001, Size: 1000}}
	user.Linux.GIDMappings = user.Linux.UIDMappings
	h.running("user", user)
	require.NoError(t, h.in(&transfertypes.ContainerPath{ContainerID: "user", Path: "/tmp", PreserveOwnership: true}, one))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(h.rootOf("user")+"/tmp/f", &st))
	require.Equal(t, []uint32{100007, 100008}, []uint32{st.Uid, st.Gid})
	data, err := h.out(&transfertypes.ContainerPath{ContainerID: "user", Path: "/tmp/f"})
	require.NoError(t, err)
	require.Equal(t, []int{7, 8}, []int{list(t, data)["f"].Uid, list(t, data)["f"].Gid})

	h.running("c1", testSpec("sleep 1000"))
	require.NoError(t, os.WriteFile(h.rootOf("c1")+"/tmp/big", make([]byte, 8<<20), 0o600))
	fds := heldFds(t)
	id, c := h.stream() // reads a little and goes
	gone := make(chan error, 1)
	go func() {
		gone <- h.transfer(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp/big"}, &transfertypes.WriteStream{Stream: id})
	}()
	io.ReadFull(NewTransferReader(c), make([]byte, 100_000))
	c.Close()
	require.Error(t, <-gone)
	id, half := h.stream() // sends half and goes
	go func() {
		NewTransferWriter(half).Write(one[:700])
		half.Close()
	}()
	require.Error(t, h.transfer(&transfertypes.ReadStream{Stream: id}, &transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp"}))
	id, c = h.stream() // says nothing
	defer c.Close()
	ctx, cancel := context.WithTimeout(h.ctx(), 300*time.Millisecond)
	defer cancel()
	src, _ := containerdAny(&transfertypes.ReadStream{Stream: id})
	dst, _ := containerdAny(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/tmp"})
	_, err = h.api.Transfer(ctx, &transferapi.TransferRequest{Source: src, Destination: dst})
	require.Error(t, err)
	c.Close()
	for deadline := time.Now().Add(5 * time.Second); heldFds(t) > fds; time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "%d descriptors, were %d", heldFds(t), fds)
	}

	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "short", Bundle: h.bundle(testSpec("true"))})
	require.NoError(t, err)
	data, err = h.out(&transfertypes.ContainerPath{ContainerID: "short", Path: "/bin/sh"})
	require.NoError(t, err, "one that is created has its files")
	require.Equal(t, "busybox", list(t, data)["sh"].Linkname)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "short"})
	require.NoError(t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "short"})
	require.NoError(t, err)
	_, err = h.out(&transfertypes.ContainerPath{ContainerID: "short", Path: "/"})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
	h.delete("short")
}
