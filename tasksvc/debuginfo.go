package tasksvc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"

	guestapi "vminit/api/services/guest/v1"
)

// maxDebugText bounds the texts of DebugInfo.
const maxDebugText = 1 << 20

// DebugInfo is a picture of the daemon's inside, made to find leaks.
func (g *Guest) DebugInfo(_ context.Context, r *guestapi.DebugInfoRequest) (*guestapi.DebugInfoResponse, error) {
	resp := &guestapi.DebugInfoResponse{Goroutines: uint32(runtime.NumGoroutine()), Memory: memory()}
	if r.Stacks {
		buf := make([]byte, maxDebugText)
		resp.GoroutineStacks = string(buf[:runtime.Stack(buf, true)])
	}
	var errs [5]error
	resp.Fds, errs[0] = openFDs()
	resp.Threads, errs[1] = threads()
	resp.Mountinfo, errs[2] = mountinfo()
	resp.Cgroups, errs[3] = cgroups(g.cfg.Cgroup)
	resp.Zombies, errs[4] = zombies()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("debug info: %w", err)
	}
	return resp, nil
}

func openFDs() ([]*guestapi.FileDescriptor, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	var fds []*guestapi.FileDescriptor
	for _, e := range entries {
		n, _ := strconv.ParseUint(e.Name(), 10, 32)
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // not the one just used
			fds = append(fds, &guestapi.FileDescriptor{Fd: uint32(n), Target: target})
		}
	}
	return fds, err
}

func threads() ([]*guestapi.Thread, error) {
	entries, err := os.ReadDir("/proc/self/task")
	var all []*guestapi.Thread
	for _, e := range entries {
		st, err := readStat("/proc/self/task/" + e.Name() + "/stat")
		if err != nil {
			continue // ended since
		}
		all = append(all, &guestapi.Thread{Tid: st.pid, Name: st.comm, State: st.state})
	}
	return all, err
}

func mountinfo() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDebugText))
	return string(data), err
}

// cgroups lists what is below the containers' tree.
func cgroups(root string) ([]*guestapi.Cgroup, error) {
	var all []*guestapi.Cgroup
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == root {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // not made yet, or removed since
			}
			return err
		}
		procs, _ := os.ReadFile(path + "/cgroup.procs")
		events, _ := os.ReadFile(path + "/cgroup.events")
		all = append(all, &guestapi.Cgroup{Path: path, Processes: uint32(bytes.Count(procs, []byte("\n"))), Frozen: bytes.Contains(events, []byte("frozen 1"))})
		return nil
	})
	return all, err
}

func zombies() ([]*guestapi.Zombie, error) {
	entries, err := os.ReadDir("/proc")
	var all []*guestapi.Zombie
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if st, err := readStat("/proc/" + e.Name() + "/stat"); err == nil && st.state == "Z" {
			all = append(all, &guestapi.Zombie{Pid: st.pid, ParentPid: st.ppid, Name: st.comm})
		}
	}
	return all, err
}

// procStat is the beginning of /proc/PID/stat (proc_pid_stat(5)).
type procStat struct {
	pid, ppid   uint32
	comm, state string
	flags       uint64 // PF_* of include/linux/sched.h; 0 if the line is cut short
}

func readStat(name string) (procStat, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return procStat{}, err
	}
	return parseStat(data)
}

// parseStat copes with any comm: it may contain blanks and parentheses.
func parseStat(data []byte) (procStat, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return procStat{}, fmt.Errorf("stat %q: no command name", data)
	}
	rest := strings.Fields(string(data[end+1:]))
	pid, err := strconv.ParseUint(strings.TrimSpace(string(data[:open])), 10, 32)
	if err != nil || len(rest) < 2 {
		return procStat{}, fmt.Errorf("stat %q: too short", data)
	}
	ppid, err := strconv.ParseUint(rest[1], 10, 32)
	st := procStat{pid: uint32(pid), ppid: uint32(ppid), comm: string(data[open+1 : end]), state: rest[0]}
	if len(rest) > 6 && err == nil {
		st.flags, err = strconv.ParseUint(rest[6], 10, 64)
	}
	return st, err
}

func memory() *guestapi.Memory {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	m := &guestapi.Memory{Heap: samples[0].Value.Uint64(), Runtime: samples[1].Value.Uint64() - samples[2].Value.Uint64()}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			m.Rss = kb << 10
		case "RssAnon":
			m.RssAnon = kb << 10
		}
	}
	return m
}
