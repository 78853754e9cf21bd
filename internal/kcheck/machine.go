package kcheck

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func machineFeatures() []Feature {
	return []Feature{
		{Name: "vsock", Since: "3.9", Need: Required, Loses: "a guest cannot be reached", probe: func(*env) error {
			return vsockSocket(unix.SOCK_STREAM, func(int) error { return nil })
		}},
		{Name: "vsock local CID", Since: "5.6", Need: Used, Loses: "a machine cannot tell its own address", probe: func(*env) error {
			n, err := unix.Open("/dev/vsock", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(n)
			return try(unix.SYS_IOCTL, n, unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID, make([]byte, 8))
		}},
		{Name: "vsock SEQPACKET", Since: "5.14", Need: Optional, Loses: "no messages over vsock", probe: func(*env) error {
			return vsockSocket(unix.SOCK_SEQPACKET, func(int) error { return nil })
		}},
		{Name: "vsock loopback", Since: "5.6", Need: Optional, Loses: "vsock servers cannot be tried within one machine", probe: func(*env) error { return vsockSocket(unix.SOCK_STREAM, loopback) }},
		{Name: "vsock MSG_ZEROCOPY", Since: "6.7", Need: Optional, Loses: "streams are copied once more", probe: func(*env) error {
			return vsockSocket(unix.SOCK_STREAM, func(n int) error { return unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1) })
		}},
		{Name: "virtiofs", Since: "5.4", Need: Used, Loses: "no directories shared by virtiofsd", probe: func(*env) error { return haveFileSystem("virtiofs") }},
		{Name: "9p", Since: "2.6.14", Need: Used, Loses: "no directories shared by QEMU", probe: func(*env) error { return haveFileSystem("9p") }},
		{Name: "ext4", Since: "2.6.28", Need: Used, Loses: "no writable disks", probe: func(*env) error { return haveFileSystem("ext4") }},
		{Name: "mqueue", Since: "2.6.6", Need: Used, Loses: "no POSIX message queues in containers", probe: func(*env) error { return haveFileSystem("mqueue") }},
		{Name: "epoll_pwait2", Since: "5.11", Need: Optional, Loses: "timeouts have milliseconds", probe: func(*env) error {
			return expect(try(unix.SYS_EPOLL_PWAIT2, -1, make([]byte, 16), 1, words(0, 0), nilArg, 0), unix.EBADF)
		}},
	}
}

// vsockSocket gives a probe a socket, if that loads no module.
func vsockSocket(kind int, probe func(int) error) error {
	if !knows("/proc/net/protocols", "AF_VSOCK") {
		return fmt.Errorf("not in /proc/net/protocols, is the module loaded? (%w)", unix.EAFNOSUPPORT)
	}
	n, err := unix.Socket(unix.AF_VSOCK, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(n)
	return probe(n)
}

// loopback connects to a listener of our own.
func loopback(n int) error {
	if err := unix.Bind(n, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: unix.VMADDR_PORT_ANY}); err != nil {
		return fmt.Errorf("is the module vsock_loopback loaded? (%w)", err)
	}
	if err := unix.Listen(n, 1); err != nil {
		return err
	}
	at, err := unix.Getsockname(n)
	if err != nil {
		return err
	}
	c, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	return expect(unix.Connect(c, at), unix.EINPROGRESS)
}
