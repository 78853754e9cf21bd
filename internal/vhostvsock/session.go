package vhostvsock

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// The ids of what the loop watches, in epoll data. Flows count up from firstFlowID,
// so that an event of a flow that is gone finds nothing.
const (
	frontID     = 0
	mailboxID   = 1
	ringID      = 2 // + the ring's index
	firstFlowID = 16
)

// session is one connection with QEMU: the vhost-user state, the rings and the
// flows. Everything but mail belongs to the goroutine in run.
type session struct {
	dev  *Device
	log  *slog.Logger
	mail *mailbox

	front  int      // the vhost-user socket
	epoll  *os.File // watched in turn by Go's poller: waiting blocks no thread
	wait   syscall.RawConn
	events [128]unix.EpollEvent

	reader   messageReader
	features uint64 // acknowledged by QEMU
	protocol uint64 // protocol features, likewise
	mem      *memory
	rings    [numRings]vring

	flows  map[flowKey]*flow
	byID   map[uint64]*flow // those with an fd
	nextID uint64
	ready  flowList          // flows with something for the guest
	resets queue[resetReply] // RSTs for the guest

	io     vector
	vec    [][]byte // scratch: pieces of chains
	data   [][]byte // scratch: pieces of payload
	bursts []burst  // scratch
	warned bool     // the first trouble was logged
}

// newSession takes over front, the vhost-user socket, also when it fails.
func newSession(d *Device, front int) (*session, error) {
	s := &session{
		dev: d, log: d.log, front: front,
		mem:   &memory{},
		flows: map[flowKey]*flow{}, byID: map[uint64]*flow{}, nextID: firstFlowID,
	}
	for i := range s.rings {
		s.rings[i] = vring{kick: -1, call: -1, errs: -1}
	}
	var err error
	if s.mail, err = newMailbox(); err != nil {
		_ = unix.Close(front)
		return nil, err
	}
	if err = s.openEpoll(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *session) openEpoll() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that os.File uses Go's poller
		_ = unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	s.epoll = os.NewFile(uintptr(fd), "epoll")
	if s.wait, err = s.epoll.SyscallConn(); err != nil {
		return err
	}
	if err := s.watch(s.front, frontID, unix.EPOLLIN); err != nil {
		return err
	}
	return s.watch(s.mail.event, mailboxID, unix.EPOLLIN|unix.EPOLLET)
}

// close ends all flows and gives back whatever the session holds.
func (s *session) close() {
	s.dropFlows()
	for _, c := range s.mail.close() {
		if c.kind == cmdDial {
			_ = unix.Close(c.dial.fd)
			c.dial.result <- dialResult{err: errGuestGone}
		}
	}
	if s.epoll != nil {
		_ = s.epoll.Close()
	}
	for i := range s.rings {
		s.rings[i].stop()
		s.rings[i].closeFds()
	}
	s.reader.close()
	s.mem.close()
	replaceFd(&s.front, -1)
}

// run is the loop. It returns nil when QEMU hangs up or the session is stopped.
func (s *session) run() (err error) {
	// Guest memory that vanishes (a file cut short under us) must not end the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch p := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }:
			err = fmt.Errorf("guest memory at %#x is gone", p.Addr())
		default:
			panic(p)
		}
	}()
	busy := false
	for {
		n, err := s.poll(busy)
		if err != nil {
			return err
		}
		frontReady := false
		for i := range s.events[:n] {
			switch id, what := eventID(&s.events[i]), s.events[i].Events; {
			case id == frontID:
				frontReady = true
			case id == mailboxID:
				if stop := s.obey(s.mail.collect()); stop {
					return nil
				}
			case id >= firstFlowID:
				if f := s.byID[id]; f != nil {
					s.flowEvent(f, what)
				}
			} // a kick is only a reason to look at the rings
		}
		busy = s.work()
		if frontReady {
			// Last, so that what the guest sent before it was stopped still counts.
			if err := s.control(); err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
					return nil
				}
				return err
			}
			busy = true
		}
	}
}

// work moves packets both ways until there is nothing to do or others should have
// a turn; true in the latter case.
func (s *session) work() (more bool) {
	if tx := &s.rings[txRing]; tx.running() {
		more = s.serviceTx(tx)
	}
	if rx := &s.rings[rxRing]; rx.running() {
		more = s.serviceRx(rx) || more
	}
	return more
}

// poll returns the number of events in s.events; it waits for one unless busy.
func (s *session) poll(busy bool) (n int, err error) {
	try := func(fd uintptr) bool {
		n, err = unix.EpollWait(int(fd), s.events[:], 0)
		if err == unix.EINTR {
			n, err = 0, nil
		}
		return busy || n > 0 || err != nil
	}
	if waitErr := s.wait.Read(try); waitErr != nil {
		return 0, waitErr
	}
	return max(n, 0), os.NewSyscallError("epoll_wait", err)
}

// obey carries commands out; true for cmdStop.
func (s *session) obey(commands []command) (stop bool) {
	for _, c := range commands {
		switch c.kind {
		case cmdStop:
			stop = true
		case cmdDial:
			s.startDial(c.dial)
		case cmdCancel:
			s.cancelDial(c.dial)
		case cmdExpire:
			s.expire(c.flow)
		}
	}
	return stop
}

// watch adds fd to the epoll set.
func (s *session) watch(fd int, id uint64, events uint32) error {
	return s.epollCtl(unix.EPOLL_CTL_ADD, fd, id, events)
}

// unwatch removes fd from the epoll set. Closing it is not enough where the file is
// shared with QEMU.
func (s *session) unwatch(fd int) {
	_ = s.epollCtl(unix.EPOLL_CTL_DEL, fd, 0, 0)
}

func (s *session) epollCtl(how, fd int, id uint64, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	var err error
	if ctlErr := s.wait.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), how, fd, &ev) }); ctlErr != nil {
		return ctlErr
	}
	return os.NewSyscallError("epoll_ctl", err)
}

func eventID(ev *unix.EpollEvent) uint64 {
	return uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
}
