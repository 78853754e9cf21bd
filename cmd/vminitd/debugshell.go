package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
	"vminit/tasksvc"
)

// shells are what a debug shell may be, with their arguments; the first that
// the guest has is taken.
var shells = [][]string{{"/bin/sh", "-l"}, {"/bin/bash", "-l"}, {"/bin/busybox", "sh", "-l"}}

// shellLoad is how long loading the shell may take.
const shellLoad = 10 * time.Second

// debugShell serves -debug-shell: each connection from the host gets a shell of
// the guest's root on a terminal of its own, with all that PID 1 may do. It ends
// with its connection, and the connection with it.
type debugShell struct {
	launcher *nsexec.Launcher
	log      *slog.Logger
	settled  <-chan struct{} // closed when there is a /dev/pts
}

// serve accepts connections from l, which has checked who they come from, until
// ctx ends.
func (d *debugShell) serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	d.log.Warn("debug shell: the host can do everything in this guest", "address", l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		inBackground(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := tasksvc.Guard(d.log, "debug shell", func() error { return d.serveConn(conn) }); err != nil {
				d.log.Warn("debug shell", "err", err)
				fmt.Fprintf(conn, "vminitd: debug shell: %v\r\n", err)
			}
		})
	}
}

// serveConn runs one shell and returns when it has ended.
func (d *debugShell) serveConn(conn net.Conn) error {
	<-d.settled
	args, err := findShell()
	if err != nil {
		return err
	}
	master, slave, err := openTerminal()
	if err != nil {
		return err
	}
	defer master.Close() // hangs up on what is left
	child, err := d.launch(args, slave)
	slave.Close()
	if err != nil {
		return err
	}
	defer child.Close()
	inBackground(func() {
		_, _ = io.Copy(master, conn)
		_ = child.Signal(unix.SIGHUP)
		_ = child.Signal(unix.SIGCONT)
		master.Close()
	})
	inBackground(func() {
		<-child.Done()
		_ = master.SetReadDeadline(time.Now().Add(time.Second)) // what it has left behind may hold the terminal
	})
	_, _ = io.Copy(conn, master) // EIO when nobody has the slave any more
	conn.Close()
	<-child.Done()
	return nil
}

// findShell returns the command of a shell.
func findShell() ([]string, error) {
	for _, args := range shells {
		if unix.Access(args[0], unix.X_OK) == nil {
			return args, nil
		}
	}
	return nil, sys.Mark(sys.ErrNotFound, errors.New("this guest has no shell: none of /bin/sh, /bin/bash, /bin/busybox"))
}

// openTerminal makes a terminal of 80 columns: ioctl_tty(2), TIOCGPTPEER of
// Linux 4.13.
func openTerminal() (master, slave *os.File, err error) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(m), "/dev/ptmx")
	err = unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0)
	if err == nil {
		err = unix.IoctlSetWinsize(m, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	var s uintptr
	if err == nil {
		var errno unix.Errno
		if s, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(m), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	return master, os.NewFile(s, "tty"), nil
}

// launch starts a program on a terminal that becomes its controlling one.
func (d *debugShell) launch(args []string, tty *os.File) (*nsexec.Process, error) {
	p, err := d.launcher.NewProgram()
	if err != nil {
		return nil, err
	}
	for _, r := range p.SetupStdio() {
		p.Bind(r, int(tty.Fd()))
	}
	p.Step("take the terminal")
	p.Call(unix.SYS_IOCTL, nsexec.Int(0), nsexec.Int(unix.TIOCSCTTY), nsexec.Int(0))
	p.SetOOMScoreAdj(0)
	p.FinishHook(nsexec.Hook{
		Path: args[0], Args: args, Dir: "/",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TERM=linux"},
	})
	if err := p.Err(); err != nil {
		p.Close()
		return nil, err
	}
	child, err := d.launcher.Start(nsexec.Launch{Program: p, Cgroup: -1, PIDNS: -1})
	if err != nil {
		p.Close()
		return nil, err
	}
	if err := child.AwaitExec(time.Now().Add(shellLoad)); err != nil {
		_ = child.Signal(unix.SIGKILL)
		<-child.Done()
		child.Close()
		return nil, err
	}
	return child.Process, nil
}
