package nsexec

import (
	"fmt"
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

// rlimit is one entry of process.rlimits.
type rlimit struct {
	resource   int
	soft, hard uint64
}

func parseRlimits(limits []specs.POSIXRlimit) ([]rlimit, error) {
	if len(limits) == 0 {
		return nil, nil
	}
	seen := uint64(0)
	list := make([]rlimit, 0, len(limits))
	for _, l := range limits {
		n, ok := lookup(rlimits, strings.ToUpper(l.Type))
		switch {
		case !ok:
			return nil, sys.Invalidf("process.rlimits: unknown type %q", l.Type)
		case seen>>n&1 != 0:
			return nil, sys.Invalidf("process.rlimits: %s is given twice", l.Type)
		case l.Soft > l.Hard:
			return nil, sys.Invalidf("process.rlimits: %s has a soft limit of %d, above the hard one of %d", l.Type, l.Soft, l.Hard)
		}
		seen |= 1 << n
		list = append(list, rlimit{int(n), l.Soft, l.Hard})
	}
	return list, nil
}

// setRlimits has the child set its own limits.
func (p *Program) setRlimits(list []rlimit) {
	for _, l := range list {
		p.Step("set %s to soft %d, hard %d", decodeValue(uint64(l.resource), rlimits), l.soft, l.hard)
		p.Call(unix.SYS_PRLIMIT64, Int(0), Int(l.resource), p.Words(l.soft, l.hard), Nil)
	}
}

// setRlimitsOf sets those of another process (prlimit(2), Linux 2.6.36).
func setRlimitsOf(pid int, list []rlimit) error {
	for _, l := range list {
		if err := unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: l.soft, Max: l.hard}, nil); err != nil {
			return fmt.Errorf("set %s to soft %d, hard %d: %w", decodeValue(uint64(l.resource), rlimits), l.soft, l.hard, err)
		}
	}
	return nil
}
