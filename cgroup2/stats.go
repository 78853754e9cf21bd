package cgroup2

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Stats is everything the kernel counts for one cgroup: what the message
// io.containerd.cgroups.v2.Metrics carries, and what newer kernels add to it.
// A nil part means that the controller, or the accounting, is not there.
//
// Sizes are bytes, times microseconds. A limit of math.MaxUint64 is "max".
type Stats struct {
	Pids         *PidsStats
	CPU          *CPUStats
	Memory       *MemoryStats
	MemoryEvents *MemoryEvents
	IO           *IOStats
	RDMA         *RDMAStats
	HugeTLB      []HugeTLBStats
	Misc         []MiscStats
}

// Stats reads the counters. They are not one snapshot: the kernel has none.
// Text that cannot be understood is an error, text that is not known is not.
func (c *Cgroup) Stats() (Stats, error) {
	var s Stats
	err := c.dir.do(func(fd int) error {
		r := statReader{fd: fd, buf: make([]byte, 0, 4096)}
		s.CPU = readCPU(&r)
		if s.CPU == nil && r.err == nil {
			return unix.ENODEV // cpu.stat is there even without its controller
		}
		s.Pids = readPids(&r)
		s.Memory = readMemory(&r)
		s.MemoryEvents = readMemoryEvents(&r)
		s.IO = readIO(&r)
		s.RDMA = readRDMA(&r)
		s.HugeTLB = readHugeTLB(&r, c.tree.pageSizes())
		s.Misc = readMisc(&r)
		return r.err
	})
	if err != nil {
		return Stats{}, c.wrap("read statistics of", err)
	}
	return s, nil
}

// statReader reads files of one cgroup into one buffer and remembers the first
// error, so that the readers of the controllers need not check each step.
type statReader struct {
	fd  int
	buf []byte
	err error
}

// file passes the contents of a file to parse and reports whether it is there.
// They are valid only until parse returns. A pressure file of a kernel booted
// with psi=0 is there but answers EOPNOTSUPP.
func (r *statReader) file(name string, parse func(data []byte) error) bool {
	if r.err != nil {
		return false
	}
	data, err := readInto(r.fd, name, r.buf)
	if absent(err) || errors.Is(err, unix.EOPNOTSUPP) {
		return false
	}
	if err == nil {
		r.buf = data
		err = parse(data)
	}
	if err != nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	return err == nil
}

// value reads a file with one number into dst and reports whether it is there.
func (r *statReader) value(name string, dst *uint64) bool {
	return r.file(name, func(data []byte) (err error) {
		*dst, err = parseValue(data)
		return err
	})
}

// OOMKills returns how many processes of the cgroup, and of cgroups below it,
// the OOM killer has killed since the cgroup was made: oom_kill of
// memory.events. The kernel counts before it sends the signal, so the count is
// right by the time the exit of the victim is seen.
//
// memory.events.local would leave out victims in cgroups that the container
// made itself; the container's owner wants those too. Kills because the whole
// machine ran out count in both.
//
// Without a memory controller nothing is counted: the error is marked
// [sys.ErrUnsupported]. After removal it is [sys.ErrNotFound].
func (c *Cgroup) OOMKills() (uint64, error) {
	if c.uncounted.Load() {
		return 0, c.wrap("read memory.events of", sys.Unsupportedf("%w: no memory controller", unix.ENOENT))
	}
	data, err := c.dir.read("memory.events")
	if absent(err) {
		if c.gone() {
			return 0, c.wrap("read memory.events of", unix.ENODEV)
		}
		c.uncounted.Store(true)
		return 0, c.wrap("read memory.events of", sys.Unsupportedf("%w: no memory controller", unix.ENOENT))
	}
	if err != nil {
		return 0, c.wrap("read memory.events of", err)
	}
	ev, err := parseMemoryEvents(data)
	return ev.OOMKill, c.wrap("parse memory.events of", err)
}
