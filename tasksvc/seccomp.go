package tasksvc

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// compileSeccomp turns the profile into a filter and warnings.
func compileSeccomp(p *specs.LinuxSeccomp) (*nsexec.Seccomp, []string, error) {
	return nil, nil, sys.Unsupportedf("not supported yet")
}
