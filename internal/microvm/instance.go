package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

// Meta is what a machine's owner writes down about it, in meta.json.
type Meta struct {
	Name      string    `json:"name"`
	PID       int       `json:"pid"` // of the owner
	StartTick uint64    `json:"startTick"`
	QEMUPID   int       `json:"qemuPid"`
	Started   time.Time `json:"started"`
	Accel     Accel     `json:"accel"`
	Kernel    string    `json:"kernel"`
	CPUs      int       `json:"cpus"`
	MemoryMiB int       `json:"memoryMiB"`
	Vsock     string    `json:"vsock"` // how the host reaches the guest, for people
	CID       uint32    `json:"cid"`

	// Addresses as package vsockstream dials them.
	RPCAddress    string `json:"rpcAddress"`
	StreamAddress string `json:"streamAddress"`

	Slots int    `json:"hotplugSlots,omitempty"`
	Ready bool   `json:"ready"` // the guest serves
	Marks []Mark `json:"marks"`
}

// maxMeta bounds meta.json in bytes.
const maxMeta = 1 << 20

// Instance is a machine that runs, as any process of its user sees it.
type Instance struct {
	Meta
	Dir string
}

// Find returns the machine of this name; ErrNotFound if none runs.
func Find(root, name string) (*Instance, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	missing := func() error {
		return sys.Mark(sys.ErrNotFound, fmt.Errorf("no VM named %s runs (vminitctl vm list shows those that do)", name))
	}
	dir := filepath.Join(root, name)
	lock, err := lockDir(dir, false)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK): // it lives
	case err == nil:
		if err := (&stateDir{dir, lock}).remove(); err != nil {
			return nil, err
		}
		return nil, missing()
	case errors.Is(err, os.ErrNotExist):
		return nil, missing()
	default:
		return nil, err
	}
	meta, err := readMeta(filepath.Join(dir, metaFile))
	if errors.Is(err, os.ErrNotExist) { // its owner has only just begun
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("VM %s is starting or ending", name))
	}
	if err != nil {
		return nil, err
	}
	return &Instance{meta, dir}, nil
}

// List returns the machines that run, by name, and clears away what dead
// owners left.
func List(root string) ([]*Instance, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Instance
	for _, e := range entries {
		if !e.IsDir() || !validName.MatchString(e.Name()) {
			continue
		}
		in, err := Find(root, e.Name())
		switch {
		case errors.Is(err, sys.ErrNotFound), errors.Is(err, sys.ErrState):
		case err != nil:
			return nil, err
		default:
			all = append(all, in)
		}
	}
	return all, nil
}

func readMeta(path string) (Meta, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return Meta{}, err
	}
	if fi.Size() > maxMeta {
		return Meta{}, sys.Invalidf("%s has %d bytes, more than the %d expected", path, fi.Size(), maxMeta)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Meta{}, err
	}
	var m Meta
	if err := json.Unmarshal(b, &m); err != nil {
		return Meta{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// writeMeta replaces meta.json as a whole, so that nobody reads half of it.
func (d *stateDir) writeMeta(m Meta) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	tmp := d.file(metaFile + ".new")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d.file(metaFile))
}

// Dial connects to a port on which the guest listens.
func (in *Instance) Dial(ctx context.Context, port uint32) (vsockstream.Conn, error) {
	return vsockstream.Dial(ctx, fmt.Sprintf("vm+unix://%s?port=%d", filepath.Join(in.Dir, vsockSock), port))
}

// ConsolePath is the socket that carries the guest's console, both ways.
func (in *Instance) ConsolePath() string { return filepath.Join(in.Dir, consoleSock) }

// LogPath is the file with what the guest wrote to its console.
func (in *Instance) LogPath() string { return filepath.Join(in.Dir, consoleFile) }

// Signal sends a signal to the machine's owner: SIGTERM has it shut the guest
// down in order, SIGKILL ends it and with it QEMU. The owner is known by pid
// and start time, so a pid that was used again is not mistaken for it.
func (in *Instance) Signal(sig unix.Signal) error {
	pidfd, err := unix.PidfdOpen(in.PID, 0)
	if err == nil {
		defer unix.Close(pidfd)
		var tick uint64
		if tick, err = startTick(in.PID); err == nil && tick != in.StartTick {
			err = unix.ESRCH
		}
	}
	if err == nil {
		err = unix.PidfdSendSignal(pidfd, sig, nil, 0)
	}
	if err != nil {
		return fmt.Errorf("signal VM %s (process %d): %w", in.Name, in.PID, err)
	}
	return nil
}

// AwaitEnd waits until the machine's owner has ended.
func (in *Instance) AwaitEnd(ctx context.Context) error {
	pidfd, err := unix.PidfdOpen(in.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for VM %s: %w", in.Name, err)
	}
	if tick, err := startTick(in.PID); err != nil || tick != in.StartTick {
		unix.Close(pidfd)
		return nil
	}
	return awaitPidfd(ctx, pidfd)
}

// awaitPidfd waits until the process of pidfd has ended, and closes pidfd.
func awaitPidfd(ctx context.Context, pidfd int) error {
	defer unix.Close(pidfd)
	for {
		// The fd is readable when the process has ended, pidfd_open(2).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 200)
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("poll: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// startTick returns when a process started, in clock ticks since boot
// (proc_pid_stat(5), field 22).
func startTick(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTick(string(b))
}

// parseStartTick skips the name, which may hold anything, to its last bracket.
func parseStartTick(stat string) (uint64, error) {
	_, rest, ok := cutLast(stat, ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, sys.Invalidf("/proc/PID/stat: %.80q is not what it should be", stat)
	}
	var tick uint64
	if _, err := fmt.Sscanf(fields[19], "%d", &tick); err != nil {
		return 0, sys.Invalidf("/proc/PID/stat: start time %.20q: %w", fields[19], err)
	}
	return tick, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
