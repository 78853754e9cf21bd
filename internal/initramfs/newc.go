package initramfs

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// File types of a cpio entry (inode(7)).
const (
	modeDir  = 0o040000
	modeReg  = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

// trailer is the name of the entry that ends an archive.
const trailer = "TRAILER!!!"

// entry is one thing in the archive. The owner is always 0:0 and the
// modification time always 0.
type entry struct {
	mode         uint32 // type and permissions
	size         int64  // of the data
	data         []byte // contents, or a link's target
	src          string // host file with the contents, if data is nil
	major, minor uint32 // of a device node
}

func (e entry) isDir() bool { return e.mode&0o170000 == modeDir }

// tree maps clean absolute guest paths to entries. Every parent is there.
type tree map[string]entry

// skeleton is what every guest needs before anything is mounted. The kernel
// opens /dev/console for PID 1; the Go runtime opens /dev/null in its place if
// that failed and dies without it.
func skeleton() tree {
	t := make(tree)
	for _, dir := range []string{"/dev", "/etc", "/proc", "/run", "/sys"} {
		t[dir] = entry{mode: modeDir | 0o755}
	}
	t["/root"] = entry{mode: modeDir | 0o700}
	t["/tmp"] = entry{mode: modeDir | 0o1777}
	t["/dev/console"] = entry{mode: modeChar | 0o600, major: 5, minor: 1}
	t["/dev/null"] = entry{mode: modeChar | 0o666, major: 1, minor: 3}
	return t
}

// add puts e at p and makes p's missing parents. A directory may be added
// again, the later mode wins; anything else is a conflict.
func (t tree) add(p string, e entry) error {
	p = path.Clean(p)
	if p == "/" {
		if e.isDir() {
			return nil // the root directory is there already
		}
		return sys.Invalidf("initramfs: %s cannot become the root directory", e.src)
	}
	if len(p) >= unix.PathMax {
		return sys.Invalidf("initramfs: path of %d bytes is too long", len(p))
	}
	if p[1:] == trailer {
		return sys.Invalidf("initramfs: %s: the name ends an archive", p)
	}
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		old, ok := t[dir]
		if !ok {
			t[dir] = entry{mode: modeDir | 0o755}
		} else if !old.isDir() {
			return sys.Invalidf("initramfs: %s is below %s, which is no directory", p, dir)
		}
	}
	if old, ok := t[p]; ok && !(old.isDir() && e.isDir()) {
		return sys.Invalidf("initramfs: two sources for %s", p)
	}
	t[p] = e
	return nil
}

// write emits the tree in the kernel's "newc" format, sorted by path, which
// puts parents before children.
//
// Source: Documentation/driver-api/early-userspace/buffer-format.rst. The cpio
// package for Go cannot write a node's device number, hence our own.
func (t tree) write(w io.Writer) error {
	for i, p := range slices.Sorted(maps.Keys(t)) {
		if err := writeEntry(w, uint32(i+1), p[1:], t[p]); err != nil {
			return err
		}
	}
	return writeHeader(w, 0, trailer, entry{})
}

func writeEntry(w io.Writer, ino uint32, name string, e entry) error {
	if e.size > 1<<32-1 {
		return sys.Invalidf("initramfs: /%s has %d bytes, the format holds less than 4 GiB", name, e.size)
	}
	if err := writeHeader(w, ino, name, e); err != nil {
		return err
	}
	if e.src != "" {
		if err := copyFile(w, e.src, e.size); err != nil {
			return err
		}
	} else if _, err := w.Write(e.data); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return pad(w, e.size)
}

// writeHeader writes the 110 byte header and the name, padded to 4 bytes.
func writeHeader(w io.Writer, ino uint32, name string, e entry) error {
	nlink := 1
	if e.isDir() {
		nlink = 2
	}
	const uid, gid, mtime, devMajor, devMinor, check = 0, 0, 0, 0, 0, 0
	n, err := fmt.Fprintf(w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		ino, e.mode, uid, gid, nlink, mtime, e.size, devMajor, devMinor, e.major, e.minor, len(name)+1, check, name)
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return pad(w, int64(n))
}

// pad fills up to a multiple of 4 after n bytes. Headers start aligned.
func pad(w io.Writer, n int64) error {
	if _, err := w.Write(make([]byte, -n&3)); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}
