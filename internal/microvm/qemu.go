package microvm

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// emulator is a QEMU process that this one owns.
type emulator struct {
	process *os.Process
	started time.Time
	log     string          // file with what it wrote to stderr
	console net.Conn        // the guest's serial port
	monitor net.Conn        // QMP
	exited  chan struct{}   // closed when it has been reaped
	state   *exec.ExitError // how it exited, nil for status 0; set before exited is closed
}

// firstExtraFD is the number that os/exec gives the first of its ExtraFiles.
const firstExtraFD = 3

// inheritance is the files that QEMU gets open.
type inheritance struct {
	files []*os.File // the first is firstExtraFD there
	ours  []*os.File // closed here once QEMU has them
}

// add returns the number that f has in QEMU. The file stays the caller's.
func (h *inheritance) add(f *os.File) int {
	h.files = append(h.files, f)
	return firstExtraFD + len(h.files) - 1
}

// channel returns a connection to QEMU, and its number there.
func (h *inheritance) channel() (net.Conn, int, error) {
	conn, theirs, err := socketPair()
	if err != nil {
		return nil, 0, err
	}
	h.ours = append(h.ours, theirs)
	return conn, h.add(theirs), nil
}

// disks returns how QEMU gets at the images.
func (h *inheritance) disks(all []Disk) (wired []wiredDisk) {
	for _, d := range all {
		if d.File != nil {
			wired = append(wired, wiredDisk{h.add(d.File), imageDriver(d.File.Stat())})
		} else {
			wired = append(wired, wiredDisk{-1, imageDriver(os.Stat(d.Path))})
		}
	}
	return wired
}

func (h *inheritance) close() {
	for _, f := range h.ours {
		_ = f.Close()
	}
}

// startEmulator runs QEMU, which ends when this process does.
func startEmulator(c Config, w wiring, logPath string, vhost *os.File) (*emulator, error) {
	e := &emulator{log: logPath, exited: make(chan struct{})}
	h := new(inheritance)
	defer h.close()
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	h.ours = append(h.ours, log)
	if e.console, w.consoleFD, err = h.channel(); err != nil {
		return nil, err
	}
	if e.monitor, w.qmpFD, err = h.channel(); err != nil {
		_ = e.console.Close()
		return nil, err
	}
	w.disks = append(w.disks, h.disks(c.Disks)...)
	if vhost != nil {
		w.vhostFD = h.add(vhost)
	}
	cmd := exec.Command(c.QEMU, commandLine(c, w)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = h.files
	if err := e.run(cmd); err != nil {
		_ = e.console.Close()
		_ = e.monitor.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return e, nil
}

// run starts QEMU and has it reaped. The parent death signal is sent when the
// thread that forked it ends (prctl(2)), so a goroutine keeps that thread until
// then.
func (e *emulator) run(cmd *exec.Cmd) error {
	// Its own process group: an interrupt typed on the terminal is ours to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if exit, ok := cmd.Wait().(*exec.ExitError); ok {
			e.state = exit
		}
		close(e.exited)
	}()
	if err := <-started; err != nil {
		return err
	}
	e.process, e.started = cmd.Process, time.Now()
	return nil
}

// imageDriver is QEMU's driver for an image, by what its stat says: the one for
// files refuses devices, and the other way round. What is wrong with an image
// that cannot be looked at QEMU says itself.
func imageDriver(fi os.FileInfo, err error) string {
	if err == nil && fi.Mode().Type() == os.ModeDevice {
		return "host_device"
	}
	return "file"
}

// kill ends QEMU without asking the guest. It does not wait.
func (e *emulator) kill() { _ = e.process.Kill() } // fails only if it has ended

// complaint returns the end of what QEMU wrote to stderr.
func (e *emulator) complaint() string {
	f, err := os.Open(e.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > tailSize {
		_, _ = f.Seek(-tailSize, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, tailSize))
	return lastLines(text, 10)
}

// socketPair returns a connection and, as a file for a child, its other end.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	defer mine.Close()
	conn, err := net.FileConn(mine) // duplicates
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}
