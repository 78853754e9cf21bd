package rootimage

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/initramfs"
)

// TestBoot mounts an image in a guest, by the kernel's own driver, and compares
// all that can be seen there with the directory it was made from.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	requireRoot(t) // for owners, devices and attributes
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		skipBoot(t, "no qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	kernel, release, err := initramfs.FindKernel()
	if err != nil {
		skipBoot(t, err.Error())
	}

	m := fixture(t)
	privileged(m)
	dir := t.TempDir()
	image, _ := build(t, m.dir, Options{})
	initBin := filepath.Join(dir, "init")
	gobuild := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", initBin, "../initramfs/testdata/bootinit")
	gobuild.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := gobuild.CombinedOutput()
	require.NoError(t, err, string(out))
	initrd, err := os.Create(filepath.Join(dir, "initramfs"))
	require.NoError(t, err)
	c := initramfs.Config{Init: initBin, KernelRelease: release, Compression: initramfs.None}
	if release != "" {
		c.Modules = []string{"virtio_pci", "virtio_blk", "erofs", "overlay"}
	}
	_, err = initramfs.Build(initrd, c)
	require.NoError(t, err)
	require.NoError(t, initrd.Close())

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err = exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", "512",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-drive", "file="+image+",format=raw,if=none,id=root,readonly=on", "-device", "virtio-blk-pci,drive=root",
		"-kernel", kernel, "-initrd", initrd.Name(), "-append", "console=ttyS0 quiet panic=-1").CombinedOutput()
	require.NoError(t, err, string(out))
	console := strings.ReplaceAll(string(out), "\r", "")
	require.Contains(t, console, "@mount <nil>")
	require.Contains(t, console, "@walk <nil>")
	require.Contains(t, console, "@overlay <nil>")
	var got []string
	for line := range strings.Lines(console) {
		if s, ok := strings.CutPrefix(line, "@file "); ok {
			got = append(got, strings.TrimSpace(s))
		}
	}
	requireSame(t, listGuest(t, m.dir), got)
}

// privileged adds what only root can make.
func privileged(m maker) {
	t := m.t
	require.NoError(t, unix.Mknod(m.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Mknod(m.path("big"), unix.S_IFBLK|0o600, int(unix.Mkdev(4000, 70000))))
	require.NoError(t, os.Lchown(m.path("sizes/4096"), 100000, 4000000000))
	require.NoError(t, os.Lchown(m.path("empty"), 33, 34))
	m.xattr("sizes/1", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	m.xattr("empty", "trusted.overlay.opaque", "y")
	m.xattr("sizes/4096", "system.posix_acl_access", "\x02\x00\x00\x00"+
		"\x01\x00\x06\x00\xff\xff\xff\xff"+"\x02\x00\x07\x00\x05\x00\x00\x00"+"\x04\x00\x04\x00\xff\xff\xff\xff"+
		"\x10\x00\x07\x00\xff\xff\xff\xff"+"\x20\x00\x04\x00\xff\xff\xff\xff")
}

// listGuest describes the directory in the way of bootinit.
func listGuest(t *testing.T, dir string) []string {
	var lines []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(p, &st))
		what := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			what = fmt.Sprintf("size=%d sha256=%x err=<nil>", st.Size, sha256.Sum256(b))
		case unix.S_IFLNK:
			what, err = os.Readlink(p)
			require.NoError(t, err)
		case unix.S_IFCHR, unix.S_IFBLK:
			what = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		xattrs, err := readXattrs(p)
		require.NoError(t, err)
		for _, x := range xattrs {
			what += fmt.Sprintf(" %s=%x", x.name, x.value)
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%q %06o %d:%d links=%d mtime=%d %s", strings.TrimPrefix(p, dir),
			st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, what)))
		return nil
	}))
	require.True(t, slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, " 106755 ") }))
	return lines
}

// skipBoot skips on machines without the parts, unless this rung demands them.
func skipBoot(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("VMINIT_RUNG") == "root" {
		t.Fatal(why)
	}
	t.Skip(why)
}
