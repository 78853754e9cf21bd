package seccomp

import (
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// On x86, socketcall(2) and ipc(2) stand for the calls below by their first
// argument (include/uapi/linux/net.h and ipc.h). The kernel ignores the upper
// half of ipc's.
var (
	socketCalls = []string{1: "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
		"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg"}
	ipcCalls = []string{1: "semop", "semget", "semctl", "semtimedop", 11: "msgsnd", "msgrcv", "msgget", "msgctl", 21: "shmat", "shmdt", "shmget", "shmctl"}
)

// muxed adds to what the profile says about socketcall or ipc what it says
// about the calls they stand for. The arguments of those are in memory, out of
// a filter's reach: a rule with conditions counts as one without where it is
// stricter than the default, and not at all where it is more lenient.
func (prof *profile) muxed(name string, c *call) *call {
	var names []string
	mask := uint64(math.MaxUint64)
	switch {
	case c.always:
		return c
	case name == "socketcall":
		names = socketCalls
	case name == "ipc":
		names, mask = ipcCalls, 0xffff
	default:
		return c
	}
	m := &call{listed: c.listed, rules: c.rules[:len(c.rules):len(c.rules)]}
	for i, n := range names {
		if n == "" {
			continue
		}
		if act := prof.strictest(&prof.calls[findCall(n)]); act != prof.deflt {
			m.rules = append(m.rules, &rule{act, []cond{{0, specs.OpEqualTo, mask, uint64(i)}}})
		}
	}
	return m
}

// strictest is a call's action if its arguments cannot be known.
func (prof *profile) strictest(c *call) uint32 {
	if c.always {
		return c.action
	}
	act := prof.deflt
	for _, r := range c.rules {
		if stricter(r.action, act) {
			act = r.action
		}
	}
	return act
}

// stricter compares two actions the way the kernel does when several filters
// disagree (seccomp(2)): KILL_PROCESS first, ALLOW last.
func stricter(a, b uint32) bool {
	const full = 0xffff0000
	return int32(a&full) < int32(b&full)
}
