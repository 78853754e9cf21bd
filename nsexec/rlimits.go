package nsexec

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// rlimits are the resources of getrlimit(2); the numbers are those of the
// generic ABI, which amd64 and arm64 share.
var rlimits = []flagName{
	{unix.RLIMIT_CPU, "RLIMIT_CPU"}, {unix.RLIMIT_FSIZE, "RLIMIT_FSIZE"}, {unix.RLIMIT_DATA, "RLIMIT_DATA"}, {unix.RLIMIT_STACK, "RLIMIT_STACK"},
	{unix.RLIMIT_CORE, "RLIMIT_CORE"}, {unix.RLIMIT_RSS, "RLIMIT_RSS"}, {unix.RLIMIT_NPROC, "RLIMIT_NPROC"}, {unix.RLIMIT_NOFILE, "RLIMIT_NOFILE"},
	{unix.RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"}, {unix.RLIMIT_AS, "RLIMIT_AS"}, {unix.RLIMIT_LOCKS, "RLIMIT_LOCKS"}, {unix.RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING"},
	{unix.RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE"}, {unix.RLIMIT_NICE, "RLIMIT_NICE"}, {unix.RLIMIT_RTPRIO, "RLIMIT_RTPRIO"}, {unix.RLIMIT_RTTIME, "RLIMIT_RTTIME"},
}

func (p *Program) setRlimits(limits []specs.POSIXRlimit) {
	seen := map[string]bool{}
	for _, l := range limits {
		name := strings.ToUpper(l.Type)
		if seen[name] {
			p.Fail(sys.Invalidf("process.rlimits: %s is given twice", l.Type))
		}
		seen[name] = true
		p.Step("set %s to soft %d, hard %d", name, l.Soft, l.Hard)
		p.Call(unix.SYS_PRLIMIT64, Int(0), Int(p.rlimit(name)), p.Words(l.Soft, l.Hard), Nil)
	}
}

func (p *Program) rlimit(name string) uint64 {
	for _, r := range rlimits {
		if r.name == name {
			return r.bits
		}
	}
	p.Fail(sys.Invalidf("process.rlimits: unknown type %q", name))
	return 0
}
