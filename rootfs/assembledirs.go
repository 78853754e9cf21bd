package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"vminit/internal/sys"
)

// makeDirs consumes the X-containerd.mkdir.path options of a mkdir/TYPE mount:
// PATH[:mode[:uid[:gid]]], inside <bundle>/mounts.
func (a *assembly) makeDirs(m *Mount) error {
	const prefix = "X-containerd.mkdir.path="
	rest := make([]string, 0, len(m.Options))
	for _, o := range m.Options {
		spec, ok := strings.CutPrefix(o, prefix)
		if !ok {
			rest = append(rest, o)
			continue
		}
		if err := a.makeDir(spec); err != nil {
			return fmt.Errorf("option %s: %w", o, err)
		}
	}
	m.Options = rest
	return nil
}

func (a *assembly) makeDir(spec string) error {
	base := filepath.Join(a.bundle, "mounts")
	d, err := parseDir(base, spec)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(d.rel, 0o755); err != nil {
		return err
	}
	if err := root.Chmod(d.rel, os.FileMode(d.mode&0o777)|stickyBits(d.mode)); err != nil {
		return err
	}
	return root.Lchown(d.rel, int(d.uid), int(d.gid))
}

// newDir is a directory to be made.
type newDir struct {
	rel            string
	mode, uid, gid uint64
}

// parseDir reads PATH[:mode[:uid[:gid]]], where PATH is inside base.
func parseDir(base, spec string) (newDir, error) {
	f := strings.Split(spec, ":")
	if len(f) > 4 {
		return newDir{}, sys.Invalidf("more than path, mode, uid and gid")
	}
	num := [4]uint64{1: 0o700}
	for i := 1; i < len(f); i++ {
		base := 10
		if i == 1 {
			base = 8
		}
		n, err := strconv.ParseUint(f[i], base, 31)
		if err != nil || i == 1 && n > 0o7777 {
			return newDir{}, sys.Invalidf("%q is not a number of its kind", f[i])
		}
		num[i] = n
	}
	rel, err := filepath.Rel(base, filepath.Clean(f[0]))
	if err != nil || !filepath.IsLocal(rel) || rel == "." {
		return newDir{}, sys.Invalidf("%s is not inside %s", f[0], base)
	}
	return newDir{rel, num[1], num[2], num[3]}, nil
}

// stickyBits translates the upper mode bits to os.FileMode's.
func stickyBits(mode uint64) (m os.FileMode) {
	for bit, f := range map[uint64]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if mode&bit != 0 {
			m |= f
		}
	}
	return m
}
