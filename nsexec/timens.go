package nsexec

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

const timeOffsetsFile = "/proc/self/timens_offsets"

// TimeOffsets is what is written to /proc/PID/timens_offsets.
type TimeOffsets string

// ParseTimeOffsets turns linux.timeOffsets into the kernel's form
// (time_namespaces(7)).
func ParseTimeOffsets(offsets map[string]specs.LinuxTimeOffset) (TimeOffsets, error) {
	var b strings.Builder
	for _, clock := range slices.Sorted(maps.Keys(offsets)) {
		if clock != "monotonic" && clock != "boottime" {
			return "", sys.Invalidf("linux.timeOffsets: unknown clock %q: only monotonic and boottime have offsets", clock)
		}
		o := offsets[clock]
		if o.Nanosecs > 999_999_999 {
			return "", sys.Invalidf("linux.timeOffsets: %s has %d nanosecs, more than a second", clock, o.Nanosecs)
		}
		fmt.Fprintf(&b, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	return TimeOffsets(b.String()), nil
}

// EnterTimeNamespace makes a time namespace with offsets and enters it (Linux
// 5.6). clone3's CLONE_NEWTIME would not do: the offsets cannot be changed once
// a process is inside. In a user namespace only the parent may write them, with
// Apply, and the program must stop at a gate in between.
func (p *Program) EnterTimeNamespace(offsets TimeOffsets, gate func()) {
	fd := p.tmp()
	p.Step("make a time namespace")
	p.Call(unix.SYS_UNSHARE, Int(unix.CLONE_NEWTIME))
	if gate != nil {
		gate()
	} else {
		p.WriteFile(timeOffsetsFile, string(offsets))
	}
	p.Step("enter the time namespace")
	p.Call(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str("/proc/self/ns/time_for_children"), Int(unix.O_CLOEXEC), Int(0)).Store(fd)
	p.Call(unix.SYS_SETNS, fd.Arg(), Int(unix.CLONE_NEWTIME))
	p.Call(unix.SYS_CLOSE, fd.Arg())
}

// Apply writes the offsets of the time namespace a child has just made.
func (o TimeOffsets) Apply(c *Process) error {
	return c.WhileAlive(func(pid int) error {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", pid), []byte(o), 0); err != nil {
			return fmt.Errorf("set the offsets of the time namespace: %w", err)
		}
		return nil
	})
}
