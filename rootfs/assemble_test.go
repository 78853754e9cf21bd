package rootfs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// assembled mounts and unmounts at the end, which must leave nothing.
func assembled(t *testing.T, mounts ...Mount) (bundle string) {
	requireRoot(t)
	bundle = t.TempDir()
	undo, err := Assemble(t.Context(), must(launcher()), bundle, mounts)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, undo())
		requireNothingLeft(t, bundle)
		require.NoError(t, undo(), "a second time")
	})
	return bundle
}

func requireNothingLeft(t *testing.T, bundle string) {
	require.Empty(t, mountsBelow(t, bundle))
	left, err := os.ReadDir(bundle)
	require.NoError(t, err)
	require.Empty(t, left)
}

func read(t *testing.T, name string) string {
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(data)
}

// layer is a directory with a file of its own and one that all layers have.
func layer(t *testing.T, dir, name string) {
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(dir+"/"+name, []byte(name), 0o644))
	require.NoError(t, os.WriteFile(dir+"/top", []byte(name), 0o644))
}

func TestAssembleOverlayWithTemplates(t *testing.T) {
	requireRoot(t)
	layers := t.TempDir()
	layer(t, layers+"/a", "a")
	layer(t, layers+"/b", "b")
	b := assembled(t, Mount{Type: "bind", Source: layers + "/a", Options: []string{"ro"}}, Mount{Type: "bind", Source: layers + "/b", Options: []string{"rbind", "ro"}},
		Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}},
		Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"X-containerd.mkdir.path={{ mount 2 }}/upper:0755:7:8", "X-containerd.mkdir.path={{mount 2}}/work:0711",
			"lowerdir={{ overlay 1 0 }}", "upperdir={{ mount 2 }}/upper", "workdir={{ mount 2 }}/work"}})
	require.Equal(t, "b", read(t, b+"/rootfs/top"))
	require.Equal(t, "a", read(t, b+"/rootfs/a"))
	require.NoError(t, os.WriteFile(b+"/rootfs/new", []byte("n"), 0o644))
	require.Equal(t, "n", read(t, b+"/mounts/2/upper/new"))
	require.ErrorIs(t, os.WriteFile(b+"/mounts/0/x", nil, 0o644), unix.EROFS)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(b+"/mounts/2/upper", &st))
	require.Equal(t, []uint32{0o755, 7, 8}, []uint32{st.Mode & 0o7777, st.Uid, st.Gid})
}

// TestAssembleManyLayers stacks 100 file systems, whose mount points together
// are longer than the kernel copies.
func TestAssembleManyLayers(t *testing.T) {
	requireRoot(t)
	bundle := filepath.Join(t.TempDir(), strings.Repeat("x", 64))
	require.NoError(t, os.Mkdir(bundle, 0o755))
	const n = 100
	base := t.TempDir()
	var mounts []Mount
	for i := range n {
		dir := filepath.Join(base, strconv.Itoa(i))
		require.NoError(t, os.Mkdir(dir, 0o755))
		mountTmpfsAt(t, dir, 0)
		layer(t, dir, strconv.Itoa(i))
		mounts = append(mounts, Mount{Type: "bind", Source: dir, Options: []string{"ro"}})
	}
	mounts = append(mounts, Mount{Type: "format/overlay", Source: "overlay", Options: []string{fmt.Sprintf("lowerdir={{ overlay %d 0 }}", n-1)}})
	cwd, err := os.Readlink("/proc/self/cwd")
	require.NoError(t, err)
	undo, err := Assemble(t.Context(), must(launcher()), bundle, mounts)
	require.NoError(t, err)
	require.Equal(t, "99", read(t, bundle+"/rootfs/top"))
	for i := range n {
		require.Equal(t, strconv.Itoa(i), read(t, fmt.Sprintf("%s/rootfs/%d", bundle, i)))
	}
	threads, err := filepath.Glob("/proc/self/task/*/cwd")
	require.NoError(t, err)
	for _, thread := range threads {
		if dir, err := os.Readlink(thread); err == nil {
			require.NotContains(t, dir, bundle)
		}
	}
	now, _ := os.Readlink("/proc/self/cwd")
	require.Contains(t, []string{cwd, "/"}, now)
	require.NoError(t, undo())
	requireNothingLeft(t, bundle)
}

// TestLayersOneByOne is the way for what no shortening helps.
func TestLayersOneByOne(t *testing.T) {
	requireRoot(t)
	base, target := t.TempDir(), t.TempDir()
	var lower []string
	for i := range 30 {
		dir := filepath.Join(base, strconv.Itoa(i), strings.Repeat("y", 150))
		layer(t, dir, strconv.Itoa(i))
		lower = append(lower, dir)
	}
	c := &mountCall{fstype: "overlay", source: "overlay", flags: unix.MS_NODEV | unix.MS_RDONLY, data: []string{"lowerdir=" + strings.Join(lower, ":")}}
	err := c.mountWith(target)
	if !kernelAtLeast(t, 6, 7) {
		require.ErrorContains(t, err, "since Linux 6.7")
		require.Empty(t, mountsBelow(t, target))
		return
	}
	require.NoError(t, err)
	defer unix.Unmount(target, unix.MNT_DETACH)
	require.Equal(t, "0", read(t, target+"/top"))
	require.Equal(t, "29", read(t, target+"/29"))
	require.ErrorIs(t, os.WriteFile(target+"/x", nil, 0o644), unix.EROFS)
}

func kernelAtLeast(t *testing.T, major, minor int) bool {
	var uts unix.Utsname
	require.NoError(t, unix.Uname(&uts))
	var a, b int
	_, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &a, &b)
	require.NoError(t, err)
	return a > major || a == major && b >= minor
}

func TestShorten(t *testing.T) {
	for _, tc := range []struct{ in, dir, out string }{
		{"lowerdir=/b/m/1:/b/m/0", "/b/m", "lowerdir=1:0"},
		{"lowerdir=/b/m/1::/b/m/0,upperdir=/b/m/2/u,workdir=/b/m/2/w,index=off", "/b/m", "lowerdir=1::0,upperdir=2/u,workdir=2/w,index=off"},
		{"lowerdir=/b/m/1:/c", "/", "lowerdir=b/m/1:c"},
		{"lowerdir=/b/mx:/b/m", "/b", "lowerdir=mx:m"},
		{`lowerdir=/b/m\:1:/b/m`, "/", `lowerdir=b/m\:1:b/m`},
		{"lowerdir=/b/m:rel", "/", "lowerdir=b/m:rel"},
		{"lowerdir=/b/../m:/b/m", "/", "lowerdir=b/../m:b/m"},
		{"size=1", "/", "size=1"},
	} {
		dir, out := shorten(strings.Split(tc.in, ","))
		require.Equal(t, tc.dir, dir, tc.in)
		require.Equal(t, tc.out, strings.Join(out, ","), tc.in)
	}
}

// image makes a file with a file system by an mkfs command whose last argument
// it is.
func image(t *testing.T, size int64, command ...string) string {
	name := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	require.NoError(t, os.Truncate(name, size))
	out, err := exec.Command(command[0], append(command[1:], name)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return name
}

// loopsOf counts the loop devices that hold an image.
func loopsOf(t *testing.T, image string) int {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	n := 0
	for _, f := range files {
		if data, _ := os.ReadFile(f); strings.TrimSpace(string(data)) == image {
			n++
		}
	}
	return n
}

func TestAssembleLoop(t *testing.T) {
	requireRoot(t)
	img := image(t, 8<<20, "mkfs.ext4", "-q", "-F")
	bundle := t.TempDir()
	undo, err := Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "ext4", Source: img, Options: []string{"loop", "nodev"}}})
	require.NoError(t, err)
	require.Equal(t, 1, loopsOf(t, img))
	require.NoError(t, os.WriteFile(bundle+"/rootfs/f", []byte("kept"), 0o644))
	require.NoError(t, undo())
	gone := func() bool { return loopsOf(t, img) == 0 }
	require.Eventually(t, gone, 5*time.Second, 10*time.Millisecond)

	undo, err = Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "ext4", Source: img, Options: []string{"loop", "ro"}}})
	require.NoError(t, err)
	require.Equal(t, "kept", read(t, bundle+"/rootfs/f"))
	require.ErrorIs(t, os.WriteFile(bundle+"/rootfs/g", nil, 0o644), unix.EROFS)
	require.NoError(t, undo())
	require.Eventually(t, gone, 5*time.Second, 10*time.Millisecond)

	_, err = Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "erofs", Source: img, Options: []string{"loop", "ro"}}})
	require.ErrorContains(t, err, "rootfs mount 0: mount erofs /dev/loop")
	require.Eventually(t, gone, 5*time.Second, 10*time.Millisecond, "a failed mount keeps no loop device")
	requireNothingLeft(t, bundle)
}

func TestAssembleLoopAtOffset(t *testing.T) {
	requireRoot(t)
	img := image(t, 8<<20, "mkfs.ext4", "-q", "-F")
	shifted := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(shifted, append(make([]byte, 1<<20), read(t, img)...), 0o600))
	b := assembled(t, Mount{Type: "ext4", Source: shifted, Options: []string{"loop", "offset=1048576", "sizelimit=8388608", "ro"}})
	require.DirExists(t, b+"/rootfs/lost+found")
}

// TestAssembleErofsDevices mounts an image whose data is on a second device.
func TestAssembleErofsDevices(t *testing.T) {
	requireRoot(t)
	content, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(content+"/big", []byte(strings.Repeat("0123456789abcdef", 4096)), 0o644))
	blob, meta := dir+"/blob", dir+"/meta"
	out, err := exec.Command("mkfs.erofs", "-Eforce-inode-compact", "--chunksize=4096", "--blobdev="+blob, meta, content).CombinedOutput()
	if err != nil {
		t.Skipf("mkfs.erofs cannot make images of two devices: %s", out)
	}
	b := assembled(t, Mount{Type: "erofs", Source: meta, Options: []string{"ro", "loop", "device=" + blob}})
	require.Equal(t, read(t, content+"/big"), read(t, b+"/rootfs/big"))
	require.Equal(t, []int{1, 1}, []int{loopsOf(t, meta), loopsOf(t, blob)})
}

func TestAssembleFailsWhole(t *testing.T) {
	requireRoot(t)
	first := Mount{Type: "tmpfs", Source: "tmpfs"}
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for want, last := range map[string]Mount{
		"rootfs mount 2: mount nosuchfs x on ":                    {Type: "nosuchfs", Source: "x"},
		"rootfs mount 2: mount bind /nosuch on ":                  {Type: "bind", Source: "/nosuch"},
		`rootfs mount 2: template "{{ mount 2 }}": "2" is not th`: {Type: "format/bind", Source: "{{ mount 2 }}"},
		"rootfs mount 2: option X-containerd.mkdir.path=/etc/x":   {Type: "mkdir/bind", Options: []string{"X-containerd.mkdir.path=/etc/x"}},
		"rootfs mount 2: mount tmpfs x on ":                       {Type: "tmpfs", Source: "x", Options: []string{"nosuchoption"}},
		"rootfs mount 2: loop device: open /nosuch":               {Type: "ext4", Source: "/nosuch", Options: []string{"loop"}},
		"rootfs mount 2: loop device of " + fifo:                  {Type: "ext4", Source: fifo, Options: []string{"loop"}},
		"rootfs mount 2: option loop=/dev/loop3: which":           {Type: "ext4", Source: "x", Options: []string{"loop=/dev/loop3"}},
		"rootfs mount 2: option offset=x: not a number":           {Type: "ext4", Source: "x", Options: []string{"offset=x"}},
		"rootfs mount 2: option loop: a bind needs no":            {Type: "bind", Source: "x", Options: []string{"loop"}},
		"rootfs mount 2: option remount":                          {Type: "tmpfs", Options: []string{"remount"}},
		"rootfs mount 2: option \"\"":                             {Type: "tmpfs", Options: []string{""}},
		"the kernel takes less than a page":                       {Type: "tmpfs", Options: []string{"x=" + strings.Repeat("y", 5000)}},
	} {
		bundle := t.TempDir()
		_, err := Assemble(t.Context(), must(launcher()), bundle, []Mount{first, first, last})
		require.ErrorContains(t, err, want)
		requireNothingLeft(t, bundle)
	}
}

func TestAssembleLeavesWhatIsThere(t *testing.T) {
	requireRoot(t)
	bundle := t.TempDir()
	require.NoError(t, os.Mkdir(bundle+"/rootfs", 0o755))
	undo, err := Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "bind", Source: bundle + "/rootfs/"}})
	require.NoError(t, err)
	require.Empty(t, mountsBelow(t, bundle))
	require.NoError(t, undo())
	require.DirExists(t, bundle+"/rootfs")
}

func TestAssemblePropagation(t *testing.T) {
	requireRoot(t)
	b := assembled(t, Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"rshared", "noexec", "x-ignored"}})
	out, err := exec.Command("grep", " "+b+"/rootfs ", "/proc/self/mountinfo").Output()
	require.NoError(t, err)
	require.Regexp(t, `rw,noexec,relatime shared:\d+ - tmpfs`, string(out))
}

func TestWaitForDevice(t *testing.T) {
	requireRoot(t)
	late := filepath.Join(t.TempDir(), "late")
	time.AfterFunc(300*time.Millisecond, func() {
		_ = os.WriteFile(late, nil, 0o600)
		_ = os.WriteFile("/sys/class/mem/null/uevent", []byte("change"), 0) // the kernel tells everybody
	})
	require.NoError(t, waitForDevice(t.Context(), late))

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := waitForDevice(ctx, "/dev/nosuch")
	require.EqualError(t, err, "wait for device /dev/nosuch: context deadline exceeded")
	require.Less(t, time.Since(began), 5*time.Second)

	_, err = Assemble(ctx, must(launcher()), t.TempDir(), []Mount{{Type: "erofs", Source: "/dev/zero", Options: []string{"device=/dev/nosuch"}}})
	require.ErrorContains(t, err, "rootfs mount 0: option device=/dev/nosuch: wait for device /dev/nosuch")
	require.NotErrorIs(t, err, sys.ErrInvalid)
}

// Layers with mapped owners, as hosts ask for them whose containers have user
// namespaces.
func TestAssembleIDMapped(t *testing.T) {
	src := ext4(t)
	owner := func(name string) uint32 {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(name, &st))
		require.Equal(t, max(st.Uid, 100000)-100000, max(st.Gid, 200000)-200000, name)
		return st.Uid
	}
	ids := []string{"uidmap=0:100000:65536", "gidmap=0:200000:1,1:200001:65535"}
	bundle := t.TempDir()
	undo, err := Assemble(t.Context(), must(launcher()), bundle, []Mount{
		{Type: "bind", Source: src, Options: []string{"rbind", "ro"}},
		{Type: "tmpfs", Source: "tmpfs"},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: append([]string{
			"X-containerd.mkdir.path={{ mount 1 }}/upper:0755", "X-containerd.mkdir.path={{ mount 1 }}/work:0755", "X-containerd.mkdir.path={{ mount 1 }}/low:0755",
			"lowerdir={{ mount 0 }}:{{ mount 0 }}/below", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work"}, ids...)},
	})
	require.NoError(t, err)
	for name, want := range map[string]uint32{"root": 100000, "one": 100001, "thousand": 101000} {
		require.Equal(t, want, owner(filepath.Join(bundle, "rootfs", name)), name)
	}
	require.NoError(t, os.WriteFile(bundle+"/rootfs/new", nil, 0o600))
	require.NoError(t, undo())
	requireNothingLeft(t, bundle)

	undo, err = Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "bind", Source: src, Options: append([]string{"rbind", "ro"}, ids...)}})
	require.NoError(t, err)
	require.Equal(t, uint32(101000), owner(bundle+"/rootfs/thousand"))
	require.Equal(t, uint32(101000), owner(bundle+"/rootfs/below/thousand"))
	require.ErrorIs(t, os.WriteFile(bundle+"/rootfs/new", nil, 0o600), unix.EROFS)
	require.NoError(t, undo())

	for _, options := range [][]string{{"uidmap=0:1"}, {"uidmap=0:1:x", "gidmap=0:1:1"}, {"uidmap=0:1:1"}, {"uidmap=", "gidmap=0:1:1"}, {"uidmap=0:1:1,0:1:1", "gidmap=0:1:1"}, {"uidmap=0:1:4294967296", "gidmap=0:1:1"}} {
		_, err := Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "overlay", Source: "overlay", Options: append([]string{"lowerdir=" + src + ":" + src + "/below"}, options...)}})
		require.ErrorIs(t, err, sys.ErrInvalid, "%q", options)
	}
	// An escaped colon, which would be taken for the end of a layer.
	for _, lower := range []string{src + `\:b`, src + ":" + src + `/a\\b`} {
		_, err := Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "overlay", Source: "overlay", Options: append([]string{"lowerdir=" + lower}, ids...)}})
		require.ErrorIs(t, err, sys.ErrInvalid)
		require.ErrorContains(t, err, "option lowerdir="+lower+": a path with a backslash does not go together with uidmap= and gidmap=")
		requireNothingLeft(t, bundle)
	}
	// A layer that is not there, after one that is.
	_, err = Assemble(t.Context(), must(launcher()), bundle, []Mount{{Type: "overlay", Source: "overlay", Options: append([]string{"lowerdir=" + src + ":/nosuch"}, ids...)}})
	require.ErrorIs(t, err, unix.ENOENT)
	requireNothingLeft(t, bundle)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
