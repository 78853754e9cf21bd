package vsockstream

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// endKind is what sort of file an end is.
type endKind int

const (
	kindPipe   endKind = iota // pipe or named pipe
	kindTTY                   // terminal, in practice a pseudo terminal's master
	kindSocket                // stream socket
	kindFile                  // regular file, block device, or a device such as /dev/null
)

// side is an end as the mover sees it.
type side struct {
	end    End
	raw    syscall.RawConn
	kind   endKind
	vsock  bool // a socket of AF_VSOCK
	append bool // open with O_APPEND
}

// inspect finds out what end is and refuses what would block a thread or
// cannot be used as the side it is meant for, O_RDONLY or O_WRONLY.
func inspect(end End, mode int) (side, error) {
	raw, err := end.SyscallConn()
	if err != nil {
		return side{}, err
	}
	s := side{end: end, raw: raw}
	var flags int
	err = control(end, func(fd int) (err error) {
		if flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
			return fmt.Errorf("fcntl F_GETFL: %w", err)
		}
		s.append = flags&unix.O_APPEND != 0
		return s.classify(fd)
	})
	if err != nil {
		return side{}, err
	}
	if m := flags & unix.O_ACCMODE; m != unix.O_RDWR && m != mode {
		return side{}, sys.Invalidf("the descriptor is open for the wrong direction")
	}
	if s.kind == kindFile {
		return s, nil
	}
	if flags&unix.O_NONBLOCK == 0 {
		return side{}, sys.Invalidf("the descriptor blocks: it needs O_NONBLOCK before os.NewFile, and File.Fd takes that away")
	}
	if err := end.SetReadDeadline(time.Time{}); err != nil {
		return side{}, fmt.Errorf("the descriptor is unknown to the poller: %w", err)
	}
	return s, nil
}

// classify sets the kind by fstat(2).
func (s *side) classify(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		s.kind = kindPipe
	case unix.S_IFSOCK:
		s.kind = kindSocket
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return fmt.Errorf("getsockopt SO_DOMAIN: %w", err)
		}
		s.vsock = domain == unix.AF_VSOCK
	case unix.S_IFREG, unix.S_IFBLK:
		s.kind = kindFile
	case unix.S_IFCHR:
		s.kind = kindFile
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			s.kind = kindTTY
		}
	default:
		return sys.Invalidf("a file of mode %#o cannot be pumped", st.Mode)
	}
	return nil
}

// pollNow asks which of events hold for fd at this moment, poll(2) without
// waiting. POLLHUP and POLLERR are always among the answers.
func pollNow(fd int, events int16) int16 {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds[:], 0)
		if err != unix.EINTR {
			return fds[0].Revents
		}
	}
}
