// Command bootinit is the smallest PID 1 for tests of guest images: it loads
// both module lists, mounts an EROFS disk if there is one, says on the console
// what it saw and powers off. Lines meant for the test start with "@".
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "bootinit: runs only as PID 1 of a guest")
		os.Exit(1)
	}
	fmt.Printf("\n@init %d ms\n", millis())
	loadList("/etc/vminit/modules")
	fmt.Printf("@serve %d ms\n", millis())
	loadList("/etc/vminit/modules.late")
	loadList("/etc/vminit/modules.rest")
	listDisk("/dev/vda")
	fmt.Println("@done")
	// The serial line is slow; what is still in its buffer would be lost.
	time.Sleep(200 * time.Millisecond)
	fmt.Println("@off", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// millis is the time since the kernel's clock started.
func millis() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano() / 1e6
}

func loadList(list string) {
	b, err := os.ReadFile(list)
	if err != nil {
		fmt.Printf("@list %s: %v\n", list, err)
		return
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "<")
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		fmt.Printf("@module %s: %v\n", line, loadModule(line))
	}
}

func loadModule(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// listDisk mounts the disk and describes every file in it.
func listDisk(dev string) {
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		fmt.Println("@devtmpfs:", err)
		return
	}
	if _, err := os.Stat(dev); err != nil {
		fmt.Println("@disk none")
		return
	}
	const at = "/mnt"
	if err := os.Mkdir(at, 0o755); err != nil {
		fmt.Println("@mkdir:", err)
		return
	}
	fmt.Println("@mount", unix.Mount(dev, at, "erofs", unix.MS_RDONLY, ""))
	err := filepath.WalkDir(at, func(p string, _ fs.DirEntry, err error) error {
		if err == nil {
			describe(p, strings.TrimPrefix(p, at))
		}
		return err
	})
	fmt.Println("@walk", err)
	fmt.Println("@overlay", writeOver(at))
}

// writeOver mounts a writable overlay over lower and changes a file in it.
func writeOver(lower string) error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	for _, d := range []string{"/run/upper", "/run/work", "/run/merged"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	options := "lowerdir=" + lower + ",upperdir=/run/upper,workdir=/run/work"
	if err := unix.Mount("overlay", "/run/merged", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	f, err := os.OpenFile("/run/merged/bin/tool", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("more")
	return errors.Join(err, f.Close(), os.Mkdir("/run/merged/made", 0o755), os.Remove("/run/merged/attrs"))
}

// describe prints type, mode, owner, links, size, contents and attributes.
func describe(p, name string) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		fmt.Printf("@file %q: %v\n", name, err)
		return
	}
	what := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(p)
		what = fmt.Sprintf("size=%d sha256=%x err=%v", st.Size, sha256.Sum256(b), err)
	case unix.S_IFLNK:
		what, _ = os.Readlink(p)
	case unix.S_IFCHR, unix.S_IFBLK:
		what = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	names := make([]byte, 4096)
	n, _ := unix.Llistxattr(p, names)
	for x := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if x != "" {
			v := make([]byte, 4096)
			n, _ := unix.Lgetxattr(p, x, v)
			what += fmt.Sprintf(" %s=%x", x, v[:max(n, 0)])
		}
	}
	fmt.Printf("@file %q %06o %d:%d links=%d mtime=%d %s\n", name, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, what)
}
