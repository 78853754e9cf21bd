package report

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fds lists the descriptors that came through execve. One that is
// close-on-exec cannot have, so it is the runtime's or the listing's own.
func (r *Report) fds() {
	r.FDs = []FD{}
	for _, n := range openFDs() {
		flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 || openedByRuntime(n) {
			continue
		}
		f := FD{FD: n}
		f.Target, _ = os.Readlink("/proc/self/fd/" + strconv.Itoa(n))
		f.Flags, _ = unix.FcntlInt(uintptr(n), unix.F_GETFL, 0)
		var st unix.Stat_t
		if err := unix.Fstat(n, &st); err == nil {
			f.Type, f.Dev, f.Ino = fileType(st.Mode), st.Dev, st.Ino
		}
		if ws, err := unix.IoctlGetWinsize(n, unix.TIOCGWINSZ); err == nil {
			f.Rows, f.Cols = int(ws.Row), int(ws.Col)
		}
		r.FDs = append(r.FDs, f)
	}
	slices.SortFunc(r.FDs, func(a, b FD) int { return cmp.Compare(a.FD, b.FD) })
}

// openFDs gives candidates: from /proc, or without it the first thousand.
func openFDs() []int {
	var list []int
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		for n := range 1024 {
			list = append(list, n)
		}
		return list
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, n)
		}
	}
	return list
}

func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFLNK:
		return "link"
	}
	return "other" // anonymous inodes: eventfd, epoll, namespaces
}

// tty finds the controlling terminal by /proc/self/stat (fields 7 and 8,
// proc(5)); its size comes from opening it.
func (r *Report) tty() {
	stat := r.text("tty", "/proc/self/stat")
	// The command's name is in parentheses and may hold anything.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 6 {
		return
	}
	nr, _ := strconv.ParseInt(f[4], 10, 32)
	if nr == 0 {
		return
	}
	t := &TTY{Number: uint64(uint32(nr))}
	t.Foreground, _ = strconv.Atoi(f[5])
	r.TTY = t
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		r.fail("tty", os.NewSyscallError("open /dev/tty", err))
		return
	}
	defer unix.Close(fd)
	if ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
		t.Rows, t.Cols = int(ws.Row), int(ws.Col)
	}
}
