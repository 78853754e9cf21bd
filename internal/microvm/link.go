package microvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"vminit/internal/vhostvsock"
	"vminit/vsockstream"
)

// guestCID is the guest's context id where it is ours to choose.
const guestCID = 3

// link is the machine's vsock: how QEMU gets it, and how the host dials.
type link struct {
	cid    uint32
	vhost  *os.File           // the kernel's device, or
	device *vhostvsock.Device // ours
	path   string             // of our device's socket
	end    context.CancelFunc
	served sync.WaitGroup

	listeners []net.Listener // of Config.Serve
}

// openLink takes the kernel's vsock device if it can be opened, else serves our
// own one at path.
func openLink(path string, log *slog.Logger) (*link, error) {
	vhost, cid, err := openVhost()
	if err == nil {
		return &link{cid: cid, vhost: vhost}, nil
	}
	log.Debug("no vsock device of the kernel's; using our own", "error", err)
	device, err := vhostvsock.New(vhostvsock.Config{SocketPath: path, GuestCID: guestCID, Logger: log})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{cid: guestCID, device: device, path: path, end: cancel}
	l.served.Go(func() {
		if err := device.Serve(ctx); err != nil {
			log.Error("vsock device has ended", "error", err)
		}
	})
	return l, nil
}

// openVhost opens the kernel's device and gives it a context id nobody has.
// Ids are the whole host's; the kernel refuses one in use.
func openVhost() (*os.File, uint32, error) {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	for range 20 {
		cid := randomCID()
		err = setGuestCID(f, cid)
		if err == nil {
			return f, cid, nil
		}
	}
	_ = f.Close()
	return nil, 0, fmt.Errorf("find a free context id: %w", err)
}

// String says for people which device it is.
func (l *link) String() string {
	if l.vhost != nil {
		return "vhost (kernel)"
	}
	return "vhost-user (own device)"
}

// dial connects to a port on which the guest listens.
func (l *link) dial(ctx context.Context, port uint32) (vsockstream.Conn, error) {
	if l.vhost != nil {
		return vsockstream.Dial(ctx, fmt.Sprintf("vsock://%d:%d", l.cid, port))
	}
	c, err := l.device.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// close ends all connections, once QEMU has ended.
func (l *link) close() error {
	err := l.closeListeners()
	if l.vhost != nil {
		l.served.Wait()
		return errors.Join(err, l.vhost.Close())
	}
	l.end()
	err = errors.Join(err, l.device.Close())
	l.served.Wait()
	return err
}

// doors are the sockets through which other processes reach the machine.
type doors struct {
	listeners []net.Listener
	end       context.CancelFunc
	served    sync.WaitGroup
}

// openDoors serves the sockets of d: every port by Firecracker's convention, the
// two ports of the daemon and the console by themselves.
func openDoors(d *stateDir, l *link, con *console, log *slog.Logger) (*doors, error) {
	ctx, cancel := context.WithCancel(context.Background())
	o := &doors{end: cancel}
	dial := func(ctx context.Context, port uint32) (net.Conn, error) { return l.dial(ctx, port) }
	o.served.Go(func() {
		if err := vhostvsock.ServeUnix(ctx, d.file(vsockSock), dial); err != nil {
			log.Error("socket has ended", "error", err)
		}
	})
	var err error
	for _, f := range []struct {
		name string
		port uint32
	}{{rpcSock, RPCPort}, {streamSock, StreamPort}} {
		if err == nil {
			err = o.listen(d.file(f.name), func(ln net.Listener) error { return forward(ctx, ln, f.port, l) }, log)
		}
	}
	if err == nil { // last, because close waits for its clients, which do not end before the console
		err = o.listen(d.file(consoleSock), con.serve, log)
	}
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// listen serves a unix socket that only its user can connect to: the directory
// it is in is closed to others.
func (o *doors) listen(path string, serve func(net.Listener) error, log *slog.Logger) error {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // stateDir.remove does it, while the directory is ours
	o.listeners = append(o.listeners, ln)
	o.served.Go(func() {
		if err := serve(ln); err != nil {
			log.Error("socket has ended", "path", path, "error", err)
		}
	})
	return nil
}

// close disconnects everybody. The console must have ended: it is what ends its
// clients.
func (o *doors) close() error {
	o.end()
	var errs []error
	for _, ln := range o.listeners {
		errs = append(errs, ln.Close())
	}
	o.served.Wait()
	return errors.Join(errs...)
}

// forward connects each client of ln with a port of the guest until ln is
// closed, and ends the connections then.
func forward(ctx context.Context, ln net.Listener, port uint32, l *link) error {
	err := acceptAll(ln, func(client net.Conn) { forwardOne(ctx, client.(*net.UnixConn), port, l) })
	if err != nil {
		return fmt.Errorf("forward port %d: %w", port, err)
	}
	return nil
}

func forwardOne(ctx context.Context, client *net.UnixConn, port uint32, l *link) {
	defer client.Close()
	guest, err := l.dial(ctx, port)
	if err != nil {
		return // the client sees its connection end
	}
	defer guest.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = guest.Close()
	})
	defer stop()
	join(client, guest)
}
