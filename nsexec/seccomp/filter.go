// Package seccomp compiles the seccomp section of a container's config.json to
// a classic BPF program for seccomp(2), without libseccomp. A profile is
// checked and resolved once (profile.go), becomes per architecture a short list
// of number ranges with equal treatment (section.go), and every such list, be
// it of system call numbers or of argument values, becomes a balanced tree of
// comparisons (tree.go). The meaning of a profile is runc's, see
// docs/seccomp.md. The package is pure: it never makes a system call, loads a
// filter or looks at the running kernel.
package seccomp

import (
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Filter is a compiled profile. Filters may be shared: do not change one.
type Filter struct {
	// Insns is the program for struct sock_fprog, at most BPF_MAXINSNS (4096).
	Insns []unix.SockFilter
	// Flags are those of seccomp(2)'s SECCOMP_SET_MODE_FILTER. With Notify they
	// include NEW_LISTENER: the call returns the listener's descriptor then.
	Flags uint
	// Notify says that some system calls are decided by a listener.
	Notify bool
	// Warnings are for the log: what was left out because nobody here knows it.
	Warnings []string
}

// Compile translates a profile for the architecture this program runs on; other
// architectures are added as the profile lists them. It follows runtime-spec
// 1.3, config-linux.md#seccomp, and where that is silent, runc. Errors wrap
// sys.ErrInvalid (the profile is wrong or too large) or sys.ErrUnsupported.
// Compile keeps nothing of p.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	switch runtime.GOARCH {
	case "amd64":
		return compile(p, specs.ArchX86_64)
	case "arm64":
		return compile(p, specs.ArchAARCH64)
	}
	return nil, sys.Unsupportedf("seccomp: no system call table for %s", runtime.GOARCH)
}

func compile(p *specs.LinuxSeccomp, native specs.Arch) (*Filter, error) {
	if p == nil {
		return nil, sys.Invalidf("seccomp: no profile")
	}
	prof, err := parse(p, native)
	if err != nil {
		return nil, err
	}
	insns, err := prof.generate()
	if err != nil {
		return nil, err
	}
	return &Filter{Insns: insns, Flags: prof.flags, Notify: prof.notify, Warnings: prof.warnings}, nil
}
