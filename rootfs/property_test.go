package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"vminit/nsexec"
)

// Pieces that random configs are made of.
var (
	anyPath   = rapid.SampledFrom([]string{"/", "/a", "/a/b", "a/../..", "/proc", "/proc/self", "/proc/meminfo", "/sys", "/dev", "/dev/pts", "/a%d", "/\x00", "", ".", "/sys/fs/cgroup", "rel/x"})
	anyType   = rapid.SampledFrom([]string{"tmpfs", "proc", "sysfs", "bind", "cgroup", "cgroup2", "devpts", "overlay", "", "x/y", "nosuchfs"})
	anyOption = rapid.OneOf(rapid.SampledFrom(specOptions), rapid.SampledFrom([]string{"size=1m", "mode=700", "size=1,mode=2", "lowerdir=/" + strings.Repeat("x", 300), "", "a\x00b", "user", "context=\"x,y\""}))
	anyMap    = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) specs.LinuxIDMapping {
		return specs.LinuxIDMapping{ContainerID: rapid.Uint32().Draw(t, "inside"), HostID: rapid.Uint32().Draw(t, "outside"), Size: rapid.Uint32().Draw(t, "size")}
	}), 0, 2)
	anyMount = rapid.Custom(func(t *rapid.T) specs.Mount {
		m := specs.Mount{Destination: anyPath.Draw(t, "destination"), Type: anyType.Draw(t, "type"), Source: anyPath.Draw(t, "source"), Options: rapid.SliceOfN(anyOption, 0, 6).Draw(t, "options")}
		if rapid.IntRange(0, 5).Draw(t, "mapped") == 0 {
			m.UIDMappings, m.GIDMappings = anyMap.Draw(t, "uids"), anyMap.Draw(t, "gids")
		}
		return m
	})
	anyDevice = rapid.Custom(func(t *rapid.T) specs.LinuxDevice {
		d := specs.LinuxDevice{Path: anyPath.Draw(t, "path"), Type: rapid.SampledFrom([]string{"c", "b", "u", "p", "x", ""}).Draw(t, "type"),
			Major: rapid.Int64Range(-2, 5000).Draw(t, "major"), Minor: rapid.Int64Range(-2, 1<<21).Draw(t, "minor")}
		if rapid.Bool().Draw(t, "moded") {
			mode := os.FileMode(rapid.Uint32().Draw(t, "mode"))
			d.FileMode = &mode
		}
		return d
	})
)

// TestRandomSpecs: whatever a config asks for, there is a plan that prints or
// an error.
func TestRandomSpecs(t *testing.T) {
	plans := 0
	rapid.Check(t, func(t *rapid.T) {
		s := &specs.Spec{Root: &specs.Root{Path: anyPath.Draw(t, "root"), Readonly: rapid.Bool().Draw(t, "readonly")}, Mounts: rapid.SliceOfN(anyMount, 0, 4).Draw(t, "mounts")}
		if rapid.Bool().Draw(t, "linux") {
			s.Linux = &specs.Linux{RootfsPropagation: rapid.SampledFrom([]string{"", "shared", "rslave", "unbindable", "x"}).Draw(t, "propagation"),
				MaskedPaths: rapid.SliceOfN(anyPath, 0, 3).Draw(t, "masked"), ReadonlyPaths: rapid.SliceOfN(anyPath, 0, 3).Draw(t, "readonly paths"),
				Devices: rapid.SliceOfN(anyDevice, 0, 2).Draw(t, "devices")}
		}
		opt := paperGuest
		opt.Namespaces = rapid.SampledFrom([]uint64{0, allNamespaces, unix.CLONE_NEWUSER, allNamespaces | unix.CLONE_NEWUSER}).Draw(t, "namespaces")
		p, err := nsexec.NewProgram()
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		Compile(p, s, opt)
		if p.Err() == nil {
			plans++
			text := p.String()
			if !strings.Contains(text, "pivot_root") {
				t.Fatalf("an odd plan:\n%s", text)
			}
		}
	})
	t.Logf("%d of them had a plan", plans)
}

// TestMakePathFindsWhatTheKernelFinds builds random forests of directories and
// links. Where the kernel finds something, the walker leads to the same place;
// where there is nothing, it is there afterwards, and nothing is outside.
func TestMakePathFindsWhatTheKernelFinds(t *testing.T) {
	names := rapid.SampledFrom([]string{"a", "b", "c", "d"})
	target := rapid.Custom(func(t *rapid.T) string {
		s := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d", "..", "."}), 1, 4).Draw(t, "parts"), "/")
		if rapid.Bool().Draw(t, "absolute") {
			s = "/" + s
		}
		return s
	})
	base := t.TempDir()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		outside := filepath.Join(base, fmt.Sprint(round))
		root := filepath.Join(outside, "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		dirs := []string{root}
		for range rapid.IntRange(0, 8).Draw(t, "entries") {
			name := filepath.Join(rapid.SampledFrom(dirs).Draw(t, "dir"), names.Draw(t, "name"))
			if rapid.Bool().Draw(t, "link") {
				_ = os.Symlink(target.Draw(t, "target"), name)
			} else if os.Mkdir(name, 0o755) == nil {
				dirs = append(dirs, name)
			}
		}
		rel := strings.Join(rapid.SliceOfN(names, 1, 4).Draw(t, "path"), "/")
		dir := rapid.Bool().Draw(t, "directory")
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		before := inodeOf(fd, rel, pathResolve)
		w := &walker{root: fd, todo: strings.Split(rel, "/"), dir: dir}
		err = w.walk()
		after := inodeOf(fd, rel, pathResolve)
		if err != nil {
			if err == unix.ELOOP && before == 0 || err == unix.ENOTDIR || err == unix.EISDIR {
				return
			}
			t.Fatalf("%s: %v (the kernel found %d)", rel, err, before)
		}
		found := strings.Join(w.done, "/")
		if found == "" {
			found = "."
		}
		if got := inodeOf(fd, found, pathResolve|unix.RESOLVE_NO_SYMLINKS); got != after || before != 0 && got != before {
			t.Fatalf("%s: %q is inode %d, the kernel finds %d, and %d before", rel, found, got, after, before)
		}
		if list, err := os.ReadDir(outside); err != nil || len(list) != 1 {
			t.Fatalf("%s: something is outside: %v %v", rel, list, err)
		}
	})
}

// inodeOf looks a path up below a directory; 0 if there is nothing.
func inodeOf(root int, rel string, resolve uint64) uint64 {
	for {
		fd, err := openat2(root, rel, unix.O_PATH, resolve)
		if err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return 0
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			return 0
		}
		return st.Ino
	}
}

func TestWalkerGivesUp(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.Symlink("b", root+"/a"))
	require.NoError(t, os.Symlink("a", root+"/b"))
	for i := range 50 {
		require.NoError(t, os.Symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("%s/l%d", root, i)))
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	for path, want := range map[string]error{"a": unix.ELOOP, "l0": unix.ELOOP, "x/" + strings.Repeat("n", 300): unix.ENAMETOOLONG} {
		require.ErrorIs(t, (&walker{root: fd, todo: strings.Split(path, "/"), dir: true}).walk(), want, path)
	}
}
