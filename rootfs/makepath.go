package rootfs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxPath  = 4096 // PATH_MAX: bytes, the final NUL included
	maxLinks = 40   // MAXSYMLINKS of the kernel
	maxTries = 100  // of what a concurrent rename or mount made fail
)

// makePath finds a path inside the child's root as the kernel would, makes what
// is missing even behind dangling links, and hands the child a path to the same
// place that has neither links nor "..".
func (v *visit) makePath(rel string, dir bool) error {
	root, err := v.file(v.root)
	if err != nil {
		return err
	}
	defer root.Close()
	w := &walker{root: int(root.Fd()), todo: strings.Split(rel, "/"), dir: dir}
	if err := asContainerRoot(v.child.PID(), w.walk); err != nil {
		return fmt.Errorf("make /%s in the container: %w", rel, err)
	}
	found := strings.Join(w.done, "/")
	if len(found) >= maxPath {
		return fmt.Errorf("make /%s in the container: %w", rel, unix.ENAMETOOLONG)
	}
	if found == "" {
		found = "."
	}
	return v.p.Write(v.path, append([]byte(found), 0))
}

// walker resolves a path below root, one name at a time. No syscall is given a
// path with a link in it, so nothing can lead outside, whoever swaps what.
type walker struct {
	root int // O_PATH fd
	dir  bool
	done []string // no links, no ".."
	todo []string
}

func (w *walker) walk() error {
	for links, tries := 0, 0; len(w.todo) > 0; {
		name := w.todo[0]
		switch name {
		case "", ".":
			w.todo = w.todo[1:]
			continue
		case "..":
			w.todo, w.done = w.todo[1:], w.done[:max(0, len(w.done)-1)]
			continue
		}
		target, isLink, err := w.look(name)
		if err == unix.ENOENT {
			if err = w.make(name); err == nil || err == unix.EEXIST {
				err = unix.EAGAIN // look again: it may be something else by now
			}
		}
		switch {
		case err == unix.EAGAIN:
			if tries++; tries > maxTries {
				return err
			}
		case err != nil:
			return err
		case isLink:
			if links++; links > maxLinks {
				return unix.ELOOP
			}
			if strings.HasPrefix(target, "/") {
				w.done = nil
			}
			w.todo = append(strings.Split(target, "/"), w.todo[1:]...)
		default:
			w.done, w.todo, tries = append(w.done, name), w.todo[1:], 0
		}
	}
	return nil
}

// look opens one name below done and reads it if it is a link.
func (w *walker) look(name string) (target string, isLink bool, err error) {
	fd, err := w.open(append(w.done[:len(w.done):len(w.done)], name), unix.O_NOFOLLOW)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return "", false, err
	}
	if fs.Type == unix.PROC_SUPER_MAGIC { // its text is not where it leads
		return "", false, unix.ELOOP
	}
	var buf [maxPath]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	return string(buf[:max(0, n)]), true, err
}

// make makes one name below done: a directory, or an empty file if that is
// what the whole path is to be.
func (w *walker) make(name string) error {
	parent, err := w.open(w.done, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if w.dir || len(w.todo) > 1 {
		return unix.Mkdirat(parent, name, 0o755)
	}
	return unix.Mknodat(parent, name, unix.S_IFREG|0o644, 0)
}

func (w *walker) open(names []string, flags uint64) (int, error) {
	path := "."
	if len(names) > 0 {
		path = strings.Join(names, "/")
	}
	return openat2(w.root, path, unix.O_PATH|flags, pathResolve|unix.RESOLVE_NO_SYMLINKS)
}

func openat2(dir int, path string, flags, resolve uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// readIDMap returns what id 0 of a process's user namespace is to the guest
// (uid_map and gid_map of proc(5)).
func readIDMap(pid int, file string) (uint32, error) {
	name := fmt.Sprintf("/proc/%d/%s", pid, file)
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return rootIn(name, string(data))
}

func rootIn(name, text string) (uint32, error) {
	for line := range strings.Lines(text) {
		var inside, outside, size uint32
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err == nil && inside == 0 && size > 0 {
			return outside, nil
		}
	}
	return 0, fmt.Errorf("%s does not map id 0", name)
}
