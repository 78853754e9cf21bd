package cgroup2

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// walk visits the cgroup root and everything below it. enter is called with
// each cgroup open; leave with an open parent and the name of a child whose
// whole subtree has been visited, so it may remove it. Cgroups that vanish
// meanwhile are skipped.
//
// A container that owns its subtree can nest as deep as it likes, so the walk
// is a loop, not a recursion, and holds two descriptors at most: it goes back
// up through "..", which is safe because cgroup v2 directories cannot be moved.
func walk(root int, enter func(fd int) error, leave func(parent int, name string) error) error {
	cur, err := unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(cur) }()
	move := func(fd int) { unix.Close(cur); cur = fd }

	type frame struct {
		name     string
		children []string // not yet visited
	}
	var stack []frame
	arrive := func(name string) error {
		if err := enter(cur); err != nil && !absent(err) {
			return err
		}
		children, err := subdirs(cur)
		if err != nil && !absent(err) {
			return err
		}
		stack = append(stack, frame{name, children})
		return nil
	}
	if err := arrive(""); err != nil {
		return err
	}
	for {
		top := &stack[len(stack)-1]
		if n := len(top.children); n > 0 {
			name := top.children[n-1]
			top.children = top.children[:n-1]
			fd, err := openAt(cur, name, unix.O_RDONLY|unix.O_DIRECTORY)
			if absent(err) {
				continue
			}
			if err != nil {
				return err
			}
			move(fd)
			if err := arrive(name); err != nil {
				return err
			}
			continue
		}
		name := top.name
		stack = stack[:len(stack)-1]
		if len(stack) == 0 {
			return nil
		}
		fd, err := unix.Openat(cur, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		move(fd)
		if err := leave(cur, name); err != nil && !absent(err) {
			return err
		}
	}
}

// subdirs lists the directories in dirfd.
func subdirs(dirfd int) ([]string, error) {
	// dup shares the read position, which an earlier walk may have moved.
	if _, err := unix.Seek(dirfd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.Getdents(dirfd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return names, nil
		}
		names = appendDirs(names, buf[:n])
	}
}

// appendDirs decodes what getdents64(2) returned and appends the names of the
// directories except "." and "..". kernfs always fills in d_type. A record
// that does not fit ends the list.
func appendDirs(names []string, data []byte) []string {
	const header = 19 // d_ino, d_off, d_reclen, d_type
	for len(data) > header {
		reclen := int(binary.NativeEndian.Uint16(data[16:]))
		if reclen <= header || reclen > len(data) {
			break
		}
		name := unix.ByteSliceToString(data[header:reclen])
		if data[18] == unix.DT_DIR && name != "" && name != "." && name != ".." {
			names = append(names, name)
		}
		data = data[reclen:]
	}
	return names
}
