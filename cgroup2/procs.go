package cgroup2

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Procs returns the ids of all processes in the cgroup and below it, sorted,
// each once, as seen from the caller's pid namespace. The list is a snapshot:
// by the time it is read a process may have gone and its id been reused, so
// never signal these ids directly. A removed cgroup has none.
func (c *Cgroup) Procs() ([]int, error) {
	var pids []int
	err := c.dir.do(func(root int) error {
		return walk(root, func(fd int) error {
			here, err := procsAt(fd)
			pids = append(pids, here...)
			return err
		}, func(int, string) error { return nil })
	})
	if err != nil {
		return nil, c.wrap("list processes of", err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// procsAt returns the processes of one cgroup. cgroup.procs of a threaded
// cgroup is EOPNOTSUPP; its processes are listed by the domain above it, but
// if that is outside the walk they are found through their threads.
func procsAt(fd int) ([]int, error) {
	data, err := readAt(fd, "cgroup.procs")
	if err == nil {
		return parsePids(data)
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	if data, err = readAt(fd, "cgroup.threads"); err != nil {
		return nil, err
	}
	tids, err := parsePids(data)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, tid := range tids {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
		if err != nil {
			continue // it has exited
		}
		pid, err := parseTgid(status)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// parseTgid finds the process a thread belongs to in its /proc/TID/status.
func parseTgid(status []byte) (int, error) {
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("Tgid:")); ok {
			pid, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 32)
			if err != nil || pid <= 0 {
				return 0, fmt.Errorf("%.40q is no process id", value)
			}
			return int(pid), nil
		}
	}
	return 0, errors.New("no Tgid in process status")
}
