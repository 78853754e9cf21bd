package kcheck

import (
	"golang.org/x/sys/unix"
)

func deviceFilterFeatures() []Feature {
	return []Feature{
		{Name: "BPF_PROG_TYPE_CGROUP_DEVICE", Since: "4.15", Need: Used, Loses: "resources.devices cannot be enforced", probe: func(*env) error { return fd(loadDeviceFilter()) }},
		{Name: "BPF_F_ALLOW_MULTI", Since: "4.15", Need: Used, Loses: "a device filter cannot be replaced without a gap", probe: func(e *env) error {
			return e.withFilter(func(prog, cgroup int) error { return nil })
		}},
		{Name: "BPF_PROG_QUERY of a cgroup", Since: "4.15", Need: Optional, Loses: "nobody can see which filter is in force", probe: func(e *env) error {
			return e.withFilter(func(_, cgroup int) error {
				ids := make([]byte, 64)
				addr, unpin := address(ids)
				defer unpin()
				// target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
				attr := append(halves(uint32(cgroup), unix.BPF_CGROUP_DEVICE, 0, 0), append(words(addr), halves(16)...)...)
				return bpf(unix.BPF_PROG_QUERY, attr)
			})
		}},
	}
}

// bpf makes the call with a structure larger than any kernel's so far: the
// excess is zero, which they accept, and some write behind a smaller one.
func bpf(cmd int, attr []byte) error {
	_, err := bpfFD(cmd, attr)
	return err
}

func bpfFD(cmd int, attr []byte) (int, error) {
	full := make([]byte, 256)
	copy(full, attr)
	return call(unix.SYS_BPF, cmd, full, len(full))
}

// loadDeviceFilter loads a device filter that allows all: r0 = 1; exit.
func loadDeviceFilter() (int, error) {
	insns := words(1<<32|0xb7, 0x95)
	license := []byte("GPL\x00")
	code, unpin := address(insns)
	defer unpin()
	text, unpinText := address(license)
	defer unpinText()
	return bpfFD(unix.BPF_PROG_LOAD, append(halves(unix.BPF_PROG_TYPE_CGROUP_DEVICE, uint32(len(insns)/8)), words(code, text)...))
}

// withFilter attaches a filter to our cgroup while f runs.
func (e *env) withFilter(f func(prog, cgroup int) error) error {
	if e.cgroupErr != nil {
		return e.cgroupErr
	}
	prog, err := loadDeviceFilter()
	if err != nil {
		return err
	}
	defer unix.Close(prog)
	dir, err := unix.Open(e.cgroup, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := bpf(unix.BPF_PROG_ATTACH, halves(uint32(dir), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI)); err != nil {
		return err
	}
	err = f(prog, dir)
	if e := bpf(unix.BPF_PROG_DETACH, halves(uint32(dir), uint32(prog), unix.BPF_CGROUP_DEVICE)); err == nil {
		err = e
	}
	return err
}
