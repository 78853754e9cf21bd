package microvm

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/mdlayher/vsock"

	"vminit/internal/vhostvsock"
)

// acceptAll has serve, which owns them, serve the clients of ln until that is
// closed, and waits for all to end.
func acceptAll(ln net.Listener, serve func(net.Conn)) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		client, err := accept(ln)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		clients.Go(func() { serve(client) })
	}
}

// acceptPause is how long accept waits for what is short to come back.
const acceptPause = 50 * time.Millisecond

// accept is Accept, tried again while it fails for want of something that may
// come back: to give up would leave a machine that nobody reaches any more.
func accept(ln net.Listener) (net.Conn, error) {
	for {
		client, err := ln.Accept()
		if !vhostvsock.IsResourceShortage(err) {
			return client, err
		}
		time.Sleep(acceptPause)
	}
}

// answer serves the ports of Config.Serve from now until the link is closed.
func (l *link) answer(ports map[uint32]func(net.Conn)) error {
	for port, serve := range ports {
		ln, err := l.listen(port)
		if err != nil {
			return err
		}
		l.listeners = append(l.listeners, ln)
		l.served.Go(func() {
			for {
				c, err := accept(ln)
				if err != nil {
					return // closed
				}
				go serve(c)
			}
		})
	}
	return nil
}

// listen listens on a port of the host's side (CID 2). With the kernel's vsock
// device the port is the whole host's, and other guests may connect to it.
func (l *link) listen(port uint32) (net.Listener, error) {
	if l.vhost == nil {
		return l.device.Listen(port)
	}
	return vsock.ListenContextID(vsock.Host, port, nil)
}

func (l *link) closeListeners() error {
	var errs []error
	for _, ln := range l.listeners {
		errs = append(errs, ln.Close())
	}
	return errors.Join(errs...)
}
