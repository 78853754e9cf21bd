package microvm

import (
	"errors"
	"net"

	"github.com/mdlayher/vsock"
)

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
				c, err := ln.Accept()
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
