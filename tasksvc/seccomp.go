package tasksvc

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
	"vminit/nsexec"
	"vminit/nsexec/seccomp"
)

// compileSeccomp turns a profile into a filter and warnings about what is left
// out of it. Profiles seen before come from the cache.
func compileSeccomp(cache *seccomp.Cache, p *specs.LinuxSeccomp) (*nsexec.Seccomp, []string, error) {
	f, err := cache.Compile(p)
	if err != nil {
		return nil, nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	if f.Notify {
		return nil, nil, sys.Unsupportedf("linux.seccomp: SCMP_ACT_NOTIFY is not supported yet")
	}
	return &nsexec.Seccomp{Filter: f.Insns, Flags: f.Flags}, f.Warnings, nil
}
