package vhostvsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Config of a Device.
type Config struct {
	// SocketPath is where the device listens for QEMU (-chardev socket,path=...,
	// without server=on). Other users cannot connect to it (mode 0600).
	SocketPath string
	// GuestCID is the guest's context id, 3 or more and below 2^32-1.
	GuestCID uint64
	// Logger receives what goes wrong; nil discards it.
	Logger *slog.Logger
}

// Device is a vhost-user vsock device for one guest. All methods may be called
// concurrently.
type Device struct {
	cfg   Config
	log   *slog.Logger
	front *net.UnixListener

	ports    atomic.Uint32 // counts the ports given to Dial
	draining atomic.Int32  // ended flows whose backlog still waits for its reader

	mu        sync.Mutex // guards what follows; taken before a mailbox's lock
	listeners map[uint32]*listener
	current   *session      // nil: no QEMU
	served    chan struct{} // closed when Serve has returned; nil: not serving
	closed    bool
}

// New creates a device and its listening socket. Serve must run before QEMU starts.
func New(cfg Config) (*Device, error) {
	if cfg.GuestCID <= hostCID || cfg.GuestCID >= 1<<32-1 {
		return nil, sys.Invalidf("vsock device: guest CID %d: want 3 to 4294967294", cfg.GuestCID)
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return nil, sys.Unsupportedf("vsock device: big-endian hosts are not supported")
	}
	front, err := listenUnix(cfg.SocketPath)
	if err != nil {
		return nil, fmt.Errorf("vsock device: %w", err)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Device{cfg: cfg, log: log, front: front, listeners: map[uint32]*listener{}}, nil
}

// Serve serves QEMU, one connection after the other, until ctx ends or Close is
// called; it returns nil then. When QEMU goes away all connections are reset and
// the next QEMU can come; a reset of the guest resets the connections likewise.
func (d *Device) Serve(ctx context.Context) error {
	d.mu.Lock()
	if d.closed || d.served != nil {
		d.mu.Unlock()
		return sys.Mark(sys.ErrState, errors.New("serve vsock device: closed, or served already"))
	}
	served := make(chan struct{})
	d.served = served
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.served = nil
		d.mu.Unlock()
		close(served)
	}()

	_ = d.front.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = d.front.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		conn, err := d.front.AcceptUnix()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if conn != nil {
				_ = conn.Close()
			}
			return nil
		case IsResourceShortage(err):
			d.log.Warn("vsock device: accept QEMU", "error", err)
			sleep(ctx, 100*time.Millisecond)
			continue
		case err != nil:
			return fmt.Errorf("vsock device: accept QEMU: %w", err)
		}
		if err := d.serveFront(ctx, conn); err != nil {
			d.log.Warn("vsock device: connection with QEMU failed", "error", err)
		}
	}
	return nil
}

// serveFront runs one connection with QEMU to its end. It owns conn.
func (d *Device) serveFront(ctx context.Context, conn *net.UnixConn) error {
	sock, err := dupFd(conn)
	_ = conn.Close()
	if err != nil {
		return err
	}
	s, err := newSession(d, sock)
	if err != nil {
		return err
	}
	d.mu.Lock()
	if d.closed {
		s.mail.post(command{kind: cmdStop})
	}
	d.current = s
	d.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { s.mail.post(command{kind: cmdStop}) })
	defer stop()

	d.log.Debug("vsock device: QEMU connected")
	err = s.run()
	d.mu.Lock()
	d.current = nil
	d.mu.Unlock()
	s.close()
	d.log.Debug("vsock device: QEMU disconnected")
	return err
}

// Close ends the device: QEMU is disconnected, connections are reset, listeners
// closed, the socket removed. It waits for Serve. What connections received before
// can still be read from them.
func (d *Device) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	served := d.served
	if d.current != nil {
		d.current.mail.post(command{kind: cmdStop})
	}
	listeners := d.listeners
	d.listeners = map[uint32]*listener{}
	d.mu.Unlock()

	err := d.front.Close()
	for _, l := range listeners {
		l.shut()
	}
	if served != nil {
		<-served
	}
	return err
}

// dupFd returns a descriptor of conn's own socket that the caller owns.
func dupFd(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	return fd, os.NewSyscallError("fcntl", dupErr)
}

// IsResourceShortage says whether accept(2) failed for want of something that may
// come back, rather than for good.
func IsResourceShortage(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) ||
		errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ECONNABORTED)
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
