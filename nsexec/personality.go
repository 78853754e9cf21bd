package nsexec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// personalities are the execution domains of the spec (linux/personality.h).
var personalities = []flagName{{0x0000, "LINUX"}, {0x0008, "LINUX32"}}

// SetPersonality sets the process execution domain (personality(2)).
func (p *Program) SetPersonality(l *specs.LinuxPersonality) {
	domain, ok := lookup(personalities, string(l.Domain))
	if !ok {
		p.Fail(sys.Invalidf("linux.personality: unknown domain %q", l.Domain))
	}
	if len(l.Flags) > 0 {
		p.Fail(sys.Invalidf("linux.personality: unknown flag %q: none are defined", l.Flags[0]))
	}
	p.Step("set the personality to %s", l.Domain)
	p.Call(unix.SYS_PERSONALITY, Int(domain))
}
