package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// runVsockCopy is what a daemon's stdout stream is compared with: a process
// writes a burst into a pipe, and a loop of read(2) and write(2) carries it to
// a vsock connection. It serves one connection after the other.
func runVsockCopy(c *invocation) int {
	args := c.parse(2, 2)
	port, size := uint32(c.number(args[0])), args[1]
	err := vsockCopy(port, size)
	fmt.Fprintf(os.Stderr, "probe vsock-copy: %v\n", err)
	return exitFailed
}

func vsockCopy(port uint32, size string) error {
	l, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return err
	}
	if err := unix.Listen(l, 1); err != nil {
		return err
	}
	fmt.Println("ready")
	buf := make([]byte, 64<<10)
	for {
		conn, _, err := unix.Accept(l)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if err := copyBurst(conn, size, buf); err != nil {
			return err
		}
		unix.Close(conn)
	}
}

func copyBurst(conn int, size string, buf []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	child, err := os.StartProcess("/proc/self/exe", []string{"probe", "burst", size}, &os.ProcAttr{Files: []*os.File{nil, w, os.Stderr}})
	w.Close()
	if err != nil {
		return err
	}
	from := int(r.Fd()) // blocking from now on
	for {
		n, err := unix.Read(from, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			r.Close()
			_, err := child.Wait()
			_ = unix.Shutdown(conn, unix.SHUT_WR)
			_, _ = unix.Read(conn, buf) // until the host has closed
			return err
		}
		for off := 0; off < n; {
			m, err := unix.Write(conn, buf[off:n])
			if err != nil && err != unix.EINTR {
				return err
			}
			off += max(m, 0)
		}
	}
}
