package nsexec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// memoryModes and memoryFlags are those of set_mempolicy(2)
// (linux/mempolicy.h). MPOL_PREFERRED_MANY came with Linux 5.15,
// MPOL_WEIGHTED_INTERLEAVE with 6.9, MPOL_F_NUMA_BALANCING with 5.12.
var (
	memoryModes = []flagName{
		{0, "MPOL_DEFAULT"}, {1, "MPOL_PREFERRED"}, {2, "MPOL_BIND"}, {3, "MPOL_INTERLEAVE"},
		{4, "MPOL_LOCAL"}, {5, "MPOL_PREFERRED_MANY"}, {6, "MPOL_WEIGHTED_INTERLEAVE"},
	}
	memoryFlags = []flagName{
		{1 << 13, "MPOL_F_NUMA_BALANCING"}, {1 << 14, "MPOL_F_RELATIVE_NODES"}, {1 << 15, "MPOL_F_STATIC_NODES"},
	}
)

// maxNodes is the largest MAX_NUMNODES of any architecture.
const maxNodes = 1024

// SetMemoryPolicy sets the NUMA memory policy of the process, which its
// children and programs inherit (set_mempolicy(2), Linux 2.6.7). Which modes
// want nodes, and which nodes there are, is the kernel's to say.
func (p *Program) SetMemoryPolicy(m *specs.LinuxMemoryPolicy) {
	mode, ok := lookup(memoryModes, string(m.Mode))
	if !ok {
		p.Fail(sys.Invalidf("linux.memoryPolicy: unknown mode %q", m.Mode))
	}
	for _, name := range m.Flags {
		flag, ok := lookup(memoryFlags, string(name))
		if !ok {
			p.Fail(sys.Invalidf("linux.memoryPolicy: unknown flag %q", name))
		}
		mode |= flag
	}
	nodes, count := Nil, 0
	if m.Nodes != "" {
		mask, err := parseList(m.Nodes, maxNodes)
		if err != nil {
			p.Fail(sys.Invalidf("linux.memoryPolicy: nodes: %w", err))
		}
		nodes, count = p.Words(mask...), 64*len(mask)+1 // the kernel takes one bit less than it is told
	}
	p.Step("set the memory policy to %s, nodes %q", m.Mode, m.Nodes)
	p.Call(unix.SYS_SET_MEMPOLICY, Int(mode), nodes, Int(count))
}
