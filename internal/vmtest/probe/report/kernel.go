package report

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDevices bounds the list where the host's /dev is seen.
const maxDevices = 2000

var errTooMany = errors.New("too many entries in /dev")

func (r *Report) devices() {
	err := filepath.WalkDir("/dev", func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Lstat(p, &st) != nil {
			return nil // gone meanwhile, or not for us to see
		}
		if len(r.Devices) == maxDevices {
			return errTooMany
		}
		d := Device{Path: p, Type: fileType(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
		switch d.Type {
		case "char", "block":
			d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		case "link":
			d.Link, _ = os.Readlink(p)
		}
		r.Devices = append(r.Devices, d)
		return nil
	})
	r.fail("devices", err)
}

var policies = map[uint32]string{
	unix.SCHED_NORMAL: "SCHED_OTHER", unix.SCHED_FIFO: "SCHED_FIFO", unix.SCHED_RR: "SCHED_RR",
	unix.SCHED_BATCH: "SCHED_BATCH", unix.SCHED_IDLE: "SCHED_IDLE", unix.SCHED_DEADLINE: "SCHED_DEADLINE",
}

// scheduling asks for the first thread, the one that came through execve.
func (r *Report) scheduling() {
	pid := os.Getpid()
	if a, err := unix.SchedGetAttr(pid, 0); err != nil {
		r.fail("scheduler", err)
	} else {
		r.Scheduler = Sched{Policy: policies[a.Policy], Flags: a.Flags, Nice: a.Nice, Priority: a.Priority,
			Runtime: a.Runtime, Deadline: a.Deadline, Period: a.Period}
	}
	var set unix.CPUSet
	r.fail("cpus", unix.SchedGetaffinity(pid, &set))
	for n := range len(set) * 64 {
		if set.IsSet(n) {
			r.CPUs = append(r.CPUs, n)
		}
	}
	const whoProcess = 1 // IOPRIO_WHO_PROCESS, include/uapi/linux/ioprio.h
	v, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(pid), 0)
	r.IOPriority = int(v)
	if errno != 0 {
		r.IOPriority = 0
		r.fail("io_priority", errno)
	}
	const ask = 0xffffffff // personality(2): asks, changes nothing
	p, _, errno := unix.Syscall(unix.SYS_PERSONALITY, ask, 0, 0)
	if errno != 0 {
		r.fail("personality", errno)
		return
	}
	r.Personality = uint64(p)
}

func (r *Report) keyring() {
	id, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		r.fail("keyring", err)
		return
	}
	r.KeyringID = id
	r.Keyring, err = unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
	r.fail("keyring", err)
}

// interfaces takes the names from /proc and the flags by ioctl (netdevice(7)).
func (r *Report) interfaces() {
	r.Interfaces = []Interface{}
	var names []string
	for line := range strings.Lines(r.text("interfaces", "/proc/self/net/dev")) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	slices.Sort(names)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.fail("interfaces", os.NewSyscallError("socket", err))
		return
	}
	defer unix.Close(fd)
	for _, name := range names {
		req, err := unix.NewIfreq(name)
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req)
		}
		if err != nil {
			r.fail("interfaces", err)
			continue
		}
		flags := uint32(req.Uint16())
		r.Interfaces = append(r.Interfaces, Interface{Name: name, Flags: flags,
			Up: flags&unix.IFF_UP != 0, Loopback: flags&unix.IFF_LOOPBACK != 0})
	}
}
