package cgroup2

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Kill sends SIGKILL to every process in the cgroup and below, including ones
// forked while it is at work, and does not wait for them to be gone. It works
// on a frozen cgroup: in v2 a fatal signal gets through. A cgroup that has
// been removed has nothing to kill.
func (c *Cgroup) Kill() error {
	err := c.dir.write("cgroup.kill", "1") // Linux 5.14
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		err = c.killEach()
	}
	if absent(err) {
		return nil
	}
	return c.wrap("kill", err)
}

// killEach is Kill for kernels without cgroup.kill. While the cgroup is frozen
// nothing in it can fork, so passes over its processes come to an end.
func (c *Cgroup) killEach() error {
	if err := c.dir.write("cgroup.freeze", "1"); err == nil {
		defer func() { _ = c.dir.write("cgroup.freeze", "0") }()
	}
	killed := map[int]bool{}
	for {
		pids, err := c.Procs()
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return killed[pid] })
		if len(pids) == 0 {
			return nil
		}
		for batch := range slices.Chunk(pids, batchSize) {
			if err := c.signalBatch(batch, unix.SIGKILL); err != nil {
				return err
			}
			for _, pid := range batch {
				killed[pid] = true
			}
		}
	}
}

// Signal sends a signal to every process that is in the cgroup or below it.
// Processes forked meanwhile may be left out.
func (c *Cgroup) Signal(sig unix.Signal) error {
	pids, err := c.Procs()
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(pids, batchSize) {
		if err := c.signalBatch(batch, sig); err != nil {
			return c.wrap("signal", err)
		}
	}
	return nil
}

// batchSize is how many descriptors of processes are held at once.
const batchSize = 128

// signalBatch sends a signal to those of pids that are in the cgroup. The pidfds
// pin the processes while membership is looked at once more, so an id that was
// reused since it was listed cannot hit a stranger.
func (c *Cgroup) signalBatch(pids []int, sig unix.Signal) error {
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // gone
		}
		if err != nil {
			return fmt.Errorf("open pidfd of process %d: %w", pid, err)
		}
		fds[pid] = fd
	}
	members, err := c.Procs()
	if err != nil {
		return err
	}
	for pid, fd := range fds {
		if _, ok := slices.BinarySearch(members, pid); !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), pid, err)
		}
	}
	return nil
}
