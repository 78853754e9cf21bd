package netup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Loopback brings the loopback interface up. The kernel then gives it 127.0.0.1
// and ::1 by itself.
func Loopback() error { return setUp("lo") }

// setUp sets IFF_UP, as "ip link set NAME up" does: netdevice(7).
func setUp(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("read the flags of %s: %w", name, err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// setMTU sets an interface's MTU, as "ip link set NAME mtu N" does.
func setMTU(name string, mtu int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", name, err)
	}
	ifr.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", name, mtu, err)
	}
	return nil
}

// waitForLink returns the first interface that matches. Drivers are loaded and
// devices found while the guest boots, so it may appear late: it subscribes to
// link changes first and looks afterwards, so that none is missed.
func waitForLink(ctx context.Context, matches func(net.Interface) bool) (net.Interface, error) {
	changes, err := subscribeLinks()
	if err != nil {
		return net.Interface{}, err
	}
	defer changes.Close()
	stop := context.AfterFunc(ctx, func() { _ = changes.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 1)
	for {
		links, err := net.Interfaces()
		if err != nil {
			return net.Interface{}, err
		}
		for _, link := range links {
			if matches(link) {
				return link, nil
			}
		}
		// What changed does not matter, the list is read again; a message cut
		// short or lost (ENOBUFS) says as much.
		switch _, err := changes.Read(buf); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return net.Interface{}, fmt.Errorf("it did not appear: %w", context.Cause(ctx))
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return net.Interface{}, fmt.Errorf("wait for link changes: %w", err)
		}
	}
}

// subscribeLinks opens a route socket that receives RTM_NEWLINK and RTM_DELLINK
// notifications, read through Go's poller.
func subscribeLinks() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a route socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to link changes: %w", err)
	}
	return os.NewFile(uintptr(fd), "link changes"), nil
}
