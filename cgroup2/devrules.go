package cgroup2

import (
	"math"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// Kinds of device and of access, numbered as in struct bpf_cgroup_dev_ctx of
// linux/bpf.h.
const (
	devBlock = 1
	devChar  = 2
	devAny   = 0 // ours: both

	accMknod = 1
	accRead  = 2
	accWrite = 4
	accAll   = accMknod | accRead | accWrite
)

// anyNumber stands for every major or minor number. No device has it: majors
// have 12 bits, minors 20.
const anyNumber = math.MaxUint32

// devRule allows or denies some kinds of access to the devices it matches.
type devRule struct {
	allow        bool
	kind         uint8 // devBlock, devChar or devAny
	access       uint8
	major, minor uint32
}

// maxDeviceRules keeps the filter to some ten thousand instructions.
const maxDeviceRules = 1024

// defaultDevices may always be used, whatever the configuration says: the
// devices the specification gives every container, and making any node, which
// is harmless as long as it cannot be opened. 5:1 is not one of them: that is the
// guest's console, and /dev/console of a container a pty.
var defaultDevices = [...]devRule{
	{true, devChar, accMknod, anyNumber, anyNumber},
	{true, devBlock, accMknod, anyNumber, anyNumber},
	{true, devChar, accAll, 1, 3},           // null
	{true, devChar, accAll, 1, 5},           // zero
	{true, devChar, accAll, 1, 7},           // full
	{true, devChar, accAll, 1, 8},           // random
	{true, devChar, accAll, 1, 9},           // urandom
	{true, devChar, accAll, 5, 0},           // tty
	{true, devChar, accAll, 5, 2},           // ptmx
	{true, devChar, accAll, 136, anyNumber}, // pts
}

// deviceRules translates the specification's rules, in order, and appends the
// defaults. The last rule that matches decides, for each kind of access on its
// own; what no rule matches is denied. Rules that can never decide are left out.
//
// Type "a" or none is both kinds, a missing number or -1 every number. No
// access means all of it for type "a", as in v1, and is an error otherwise.
func deviceRules(list []specs.LinuxDeviceCgroup) ([]devRule, error) {
	if len(list) > maxDeviceRules {
		return nil, sys.Invalidf("devices: %d rules, more than %d", len(list), maxDeviceRules)
	}
	var rules []devRule
	for i, d := range list {
		rule, err := deviceRule(d)
		if err != nil {
			return nil, sys.Invalidf("devices[%d]: %w", i, err)
		}
		if rule.kind == devAny && rule.access == accAll && rule.major == anyNumber && rule.minor == anyNumber {
			rules = rules[:0] // it overrides all before it
			if !rule.allow {
				continue // as if there were no rule
			}
		}
		rules = append(rules, rule)
	}
	return append(rules, defaultDevices[:]...), nil
}

func deviceRule(d specs.LinuxDeviceCgroup) (rule devRule, err error) {
	rule.allow = d.Allow
	switch d.Type {
	case "", "a":
		rule.kind = devAny
	case "b":
		rule.kind = devBlock
	case "c", "u":
		rule.kind = devChar
	default:
		return rule, sys.Invalidf("type is %.20q, must be a, b or c", d.Type)
	}
	for _, c := range d.Access {
		i := strings.IndexRune("mrw", c)
		if i < 0 {
			return rule, sys.Invalidf("access is %.20q, must be made of r, w and m", d.Access)
		}
		rule.access |= 1 << i
	}
	if d.Access == "" {
		if rule.kind != devAny {
			return rule, sys.Invalidf("access is empty, must be made of r, w and m")
		}
		rule.access = accAll
	}
	if rule.major, err = ruleNumber("major", d.Major); err != nil {
		return rule, err
	}
	rule.minor, err = ruleNumber("minor", d.Minor)
	return rule, err
}

func ruleNumber(what string, n *int64) (uint32, error) {
	switch {
	case n == nil || *n == -1:
		return anyNumber, nil
	case *n < 0 || *n >= anyNumber:
		return 0, sys.Invalidf("%s is %d: no such device number", what, *n)
	}
	return uint32(*n), nil
}
