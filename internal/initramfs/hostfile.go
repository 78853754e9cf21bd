package initramfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"vminit/internal/sys"
)

// errChanged: the image would not hold what the header promised.
var errChanged = errors.New("the file changed while it was read: try again")

// addHost puts the host file or directory src at dst.
func (t tree) addHost(src, dst string) error {
	if !path.IsAbs(dst) {
		return sys.Invalidf("add %s: destination %q is not absolute", src, dst)
	}
	// A file that is named may be a link to what is meant; links found
	// inside a directory are kept.
	top, err := filepath.EvalSymlinks(src)
	if err != nil {
		return fmt.Errorf("add: %w", err)
	}
	return filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("add: %w", err)
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return fmt.Errorf("add: %w", err)
		}
		e, err := hostEntry(p)
		if err != nil {
			return err
		}
		return t.add(path.Join(dst, filepath.ToSlash(rel)), e)
	})
}

// hostEntry describes the host file p without reading it.
func hostEntry(p string) (entry, error) {
	fi, err := os.Lstat(p)
	if err != nil {
		return entry{}, fmt.Errorf("add: %w", err)
	}
	perm := unixPerm(fi.Mode())
	switch fi.Mode().Type() {
	case 0:
		return entry{mode: modeReg | perm, src: p, size: fi.Size()}, nil
	case fs.ModeDir:
		return entry{mode: modeDir | perm}, nil
	case fs.ModeSymlink:
		target, err := os.Readlink(p)
		if err != nil {
			return entry{}, fmt.Errorf("add: %w", err)
		}
		return entry{mode: modeLink | 0o777, data: []byte(target), size: int64(len(target))}, nil
	}
	return entry{}, sys.Invalidf("add %s: only files, directories and symbolic links can be added, this is %s", p, fi.Mode().Type())
}

// unixPerm is the permission bits of m with setuid, setgid and sticky.
func unixPerm(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	for bit, unix := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			p |= unix
		}
	}
	return p
}

// copyFile writes the contents of src, which must have exactly size bytes.
func copyFile(w io.Writer, src string, size int64) error {
	f, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("add: %w", err)
	}
	defer f.Close()
	n, err := io.Copy(w, io.LimitReader(f, size+1))
	if err != nil {
		return fmt.Errorf("add %s: %w", src, err)
	}
	if n != size {
		return fmt.Errorf("add %s: %w", src, errChanged)
	}
	return nil
}
