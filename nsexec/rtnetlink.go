package nsexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// route is a NETLINK_ROUTE socket (rtnetlink(7)). It acts on the network
// namespace it was made in, whoever uses it. Not safe for concurrent use.
type route struct {
	fd  int
	seq uint32
}

// routeTimeout guards against a kernel that does not answer, which it does
// within the send.
const routeTimeout = 5 // seconds

func newRoute(fd int) (*route, error) {
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: routeTimeout}); err != nil {
		return nil, fmt.Errorf("route socket: %w", err)
	}
	return &route{fd: fd}, nil
}

func dialRoute() (*route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("route socket: %w", err)
	}
	r, err := newRoute(fd)
	if err != nil {
		unix.Close(fd)
	}
	return r, err
}

func (r *route) close() { unix.Close(r.fd) }

// do sends a request and hands every message of the answer to each, which may
// be nil. The kernel's refusal is returned as a bare errno.
func (r *route) do(kind, flags uint16, body []byte, each func(body []byte)) error {
	r.seq++
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|flags)
	msg = binary.NativeEndian.AppendUint32(msg, r.seq)
	msg = binary.NativeEndian.AppendUint32(msg, 0)
	if err := unix.Sendto(r.fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	a := answer{seq: r.seq, each: each}
	buf := make([]byte, 32<<10) // the most the kernel puts into one datagram of a dump
	for !a.done {
		n, err := unix.Read(r.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("no answer from the kernel: %w", err)
		}
		if err := a.add(buf[:n]); err != nil {
			return err
		}
	}
	if a.changed {
		return errChanged
	}
	return nil
}

// answer is what has come of the answer to one request.
type answer struct {
	seq           uint32
	each          func(body []byte)
	done, changed bool
}

// add goes through one datagram.
func (a *answer) add(b []byte) error {
	for m, err := range netlinkMessages(b) {
		if err != nil {
			return err
		}
		if m.seq != a.seq { // of an answer given up before
			continue
		}
		a.changed = a.changed || m.flags&unix.NLM_F_DUMP_INTR != 0
		switch m.kind {
		case unix.NLMSG_DONE:
			a.done = true
		case unix.NLMSG_ERROR:
			if len(m.body) < 4 {
				return errShort
			}
			if e := int32(binary.NativeEndian.Uint32(m.body)); e != 0 {
				return unix.Errno(-e)
			}
			a.done = true
		default:
			if a.each != nil {
				a.each(m.body)
			}
			a.done = m.flags&unix.NLM_F_MULTI == 0
		}
	}
	return nil
}

var (
	errShort   = errors.New("netlink: short message")
	errChanged = errors.New("the list changed while it was read")
)

// netlinkMessage is a struct nlmsghdr (netlink(7)) and what follows it.
type netlinkMessage struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// netlinkMessages splits a datagram.
func netlinkMessages(b []byte) iter.Seq2[netlinkMessage, error] {
	return func(yield func(netlinkMessage, error) bool) {
		for len(b) > 0 {
			if len(b) < unix.SizeofNlMsghdr {
				yield(netlinkMessage{}, errShort)
				return
			}
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				yield(netlinkMessage{}, errShort)
				return
			}
			m := netlinkMessage{kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
				seq: binary.NativeEndian.Uint32(b[8:]), body: b[unix.SizeofNlMsghdr:n]}
			if !yield(m, nil) {
				return
			}
			b = b[min(align4(n), len(b)):]
		}
	}
}

// routeAttrs splits what follows a message's fixed part into struct rtattr. It
// stops at a malformed one.
func routeAttrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) || !yield(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(align4(n), len(b)):]
		}
	}
}

// appendAttr appends one struct rtattr.
func appendAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, align4(len(b))-len(b))...)
}

func align4(n int) int { return (n + 3) &^ 3 }

// dump asks for a list and starts over while the kernel says that the list
// changed as it was read.
func (r *route) dump(kind uint16, body []byte, begin func(), each func(body []byte)) error {
	for range 10 {
		begin()
		if err := r.do(kind, unix.NLM_F_DUMP, body, each); !errors.Is(err, errChanged) {
			return err
		}
	}
	return errChanged
}

// namespace returns the network namespace the socket acts on (SIOCGSKNS, Linux
// 4.9). The caller closes it.
func (r *route) namespace() (*os.File, error) {
	fd, err := unix.IoctlRetInt(r.fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("find the network namespace of a socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "netns"), nil
}
