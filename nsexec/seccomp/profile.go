package seccomp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxRules bounds the conditional rules of a profile, counted once per system
// call: far more than fit a filter, few enough to be compiled in no time.
const maxRules = unix.BPF_MAXINSNS

// profile is a checked specs.LinuxSeccomp with names resolved.
type profile struct {
	deflt    uint32 // the default action
	newer    uint32 // action for calls newer than the profile
	calls    []call // by index of callName
	arches   []*arch
	flags    uint
	notify   bool
	warnings []string
}

// call is what a profile says about one system call.
type call struct {
	listed bool   // named at all, even if only with the default action
	always bool   // action holds whatever the arguments are
	action uint32 // SECCOMP_RET_*
	rules  []*rule
}

// rule applies if all its conditions hold.
type rule struct {
	action uint32
	conds  []cond
}

// cond compares an argument under a mask with a value.
type cond struct {
	arg   uint
	op    specs.LinuxSeccompOperator // never MASKED_EQ: that is EQ with a mask
	mask  uint64
	value uint64
}

func parse(p *specs.LinuxSeccomp, native specs.Arch) (*profile, error) {
	prof := &profile{calls: make([]call, len(callEnds))}
	var err error
	if prof.deflt, err = action(p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return nil, fmt.Errorf("seccomp: defaultAction: %w", err)
	}
	if p.DefaultAction == specs.ActNotify {
		return nil, sys.Invalidf("seccomp: defaultAction: SCMP_ACT_NOTIFY would stop the runtime itself before it has handed the listener over; name the system calls instead")
	}
	prof.newer = enosysUnlessPermissive(prof.deflt)
	if err := prof.addArches(p.Architectures, native); err != nil {
		return nil, err
	}
	if err := prof.addRules(p.Syscalls); err != nil {
		return nil, err
	}
	if err := prof.addFlags(p.Flags); err != nil {
		return nil, err
	}
	if prof.notify && p.ListenerPath == "" {
		return nil, sys.Invalidf("seccomp: SCMP_ACT_NOTIFY needs listenerPath")
	}
	if p.ListenerMetadata != "" && p.ListenerPath == "" {
		return nil, sys.Invalidf("seccomp: listenerMetadata is set without listenerPath")
	}
	return prof, nil
}

// enosysUnlessPermissive is what runc does about calls the profile's author
// could not know: they fail as on a kernel without them, so that libraries fall
// back, unless the default lets them through or a tracer decides.
func enosysUnlessPermissive(deflt uint32) uint32 {
	switch deflt & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return deflt
	}
	return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
}

func action(a specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	ret, limit := uint32(0), uint(0)
	switch a {
	case specs.ActKill, specs.ActKillThread:
		ret = unix.SECCOMP_RET_KILL_THREAD
	case specs.ActKillProcess:
		ret = unix.SECCOMP_RET_KILL_PROCESS
	case specs.ActTrap:
		ret = unix.SECCOMP_RET_TRAP
	case specs.ActErrno:
		ret, limit = unix.SECCOMP_RET_ERRNO, 4095 // MAX_ERRNO
	case specs.ActTrace:
		ret, limit = unix.SECCOMP_RET_TRACE, unix.SECCOMP_RET_DATA
	case specs.ActAllow:
		ret = unix.SECCOMP_RET_ALLOW
	case specs.ActLog:
		ret = unix.SECCOMP_RET_LOG
	case specs.ActNotify:
		ret = unix.SECCOMP_RET_USER_NOTIF
	default:
		return 0, sys.Invalidf("unknown action %q", a)
	}
	switch {
	case errnoRet == nil && limit != 0:
		return ret | uint32(unix.EPERM), nil
	case errnoRet == nil:
		return ret, nil
	case limit == 0:
		return 0, sys.Invalidf("action %s takes no errnoRet", a)
	case *errnoRet > limit:
		return 0, sys.Invalidf("errnoRet %d is more than the %d that %s can carry", *errnoRet, limit, a)
	}
	return ret | uint32(*errnoRet), nil
}

// addArches puts the native architecture first.
func (prof *profile) addArches(names []specs.Arch, native specs.Arch) error {
	prof.arches = []*arch{knownArch(native)}
	for i, name := range names {
		a := knownArch(name)
		switch {
		case slices.Contains(names[:i], name) || name == native:
		case a != nil:
			prof.arches = append(prof.arches, a)
		case foreignArch(name):
			prof.warnings = append(prof.warnings, fmt.Sprintf("seccomp: architecture %s skipped: its programs cannot run here", name))
		default:
			return sys.Invalidf("seccomp: unknown architecture %q", name)
		}
	}
	return nil
}

func (prof *profile) addFlags(flags []specs.LinuxSeccompFlag) error {
	if flags == nil { // as runc and crun: without it, seccomp(2) may turn slow mitigations on
		prof.flags = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	}
	for _, f := range flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			prof.flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			prof.flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			prof.flags |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		case "SECCOMP_FILTER_FLAG_TSYNC":
			prof.flags |= unix.SECCOMP_FILTER_FLAG_TSYNC
		default:
			return sys.Invalidf("seccomp: unknown flag %q", f)
		}
	}
	// The kernel refuses TSYNC with NEW_LISTENER and WAIT_KILLABLE_RECV without
	// it (seccomp(2)). TSYNC means nothing to the single thread that loads us.
	if prof.notify {
		prof.flags |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
		prof.flags &^= unix.SECCOMP_FILTER_FLAG_TSYNC
	} else {
		prof.flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	}
	return nil
}

func (prof *profile) addRules(syscalls []specs.LinuxSyscall) error {
	var unknown []string
	total := 0
	for i, s := range syscalls {
		rules, err := parseRules(&s)
		if err != nil {
			return fmt.Errorf("seccomp: syscalls[%d]: %w", i, err)
		}
		prof.notify = prof.notify || s.Action == specs.ActNotify
		for _, name := range s.Names {
			if s.Action == specs.ActNotify && name == "write" {
				return sys.Invalidf("seccomp: syscalls[%d]: SCMP_ACT_NOTIFY for write would stop the runtime itself before it has handed the listener over", i)
			}
			n := findCall(name)
			if n < 0 {
				unknown = append(unknown, name)
				continue
			}
			if total += prof.calls[n].add(rules, prof.deflt); total > maxRules {
				return sys.Invalidf("seccomp: more than %d conditional rules: they cannot fit a filter", maxRules)
			}
		}
	}
	prof.warnUnknown(unknown)
	return nil
}

// add adds the rules of one entry of the profile, in order, and returns how
// many it kept. As in libseccomp an unconditional rule hides every other for
// the same call, the first of several wins, and as in runc a rule that says the
// same as the default is no rule.
func (c *call) add(rules []*rule, deflt uint32) int {
	c.listed = true
	switch {
	case c.always || rules[0].action == deflt:
		return 0
	case len(rules[0].conds) == 0:
		c.always, c.action, c.rules = true, rules[0].action, nil
		return 0
	}
	c.rules = append(c.rules, rules...)
	return len(rules)
}

// parseRules returns the rules, at least one, of an entry; all have its action.
// Conditions on one argument more than once are alternatives: each condition of
// the entry becomes a rule of its own then (runc's and crun's reading).
func parseRules(s *specs.LinuxSyscall) ([]*rule, error) {
	act, err := action(s.Action, s.ErrnoRet)
	if err != nil {
		return nil, err
	}
	if len(s.Names) == 0 || slices.Contains(s.Names, "") {
		return nil, sys.Invalidf("names must name at least one system call")
	}
	if len(s.Args) > maxRules {
		return nil, sys.Invalidf("%d conditions cannot fit a filter", len(s.Args))
	}
	var seen [6]bool
	repeated := false
	conds := make([]cond, len(s.Args))
	for i, arg := range s.Args {
		if conds[i], err = parseCond(arg); err != nil {
			return nil, fmt.Errorf("args[%d]: %w", i, err)
		}
		repeated = repeated || seen[arg.Index]
		seen[arg.Index] = true
	}
	if !repeated {
		return []*rule{{act, conds}}, nil
	}
	rules := make([]*rule, len(conds))
	for i := range conds {
		rules[i] = &rule{act, conds[i : i+1]}
	}
	return rules, nil
}

func parseCond(a specs.LinuxSeccompArg) (cond, error) {
	if a.Index > 5 {
		return cond{}, sys.Invalidf("index %d: a system call has six arguments, 0 to 5", a.Index)
	}
	switch a.Op {
	case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan:
		return cond{a.Index, a.Op, ^uint64(0), a.Value}, nil
	case specs.OpMaskedEqual: // bits outside the mask are no part of the comparison, on either side
		return cond{a.Index, specs.OpEqualTo, a.Value, a.ValueTwo & a.Value}, nil
	}
	return cond{}, sys.Invalidf("unknown operator %q", a.Op)
}

func (prof *profile) warnUnknown(names []string) {
	if len(names) == 0 {
		return
	}
	const most = 20
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	for i, n := range names {
		names[i] = fmt.Sprintf("%.40q", n)
	}
	prof.warnings = append(prof.warnings, "seccomp: unknown system calls skipped: "+strings.Join(names, ", ")+more)
}
