package cgroup2

import (
	"encoding/binary"
	"fmt"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vminit/internal/sys"
)

// execute runs a program as the kernel would, and is as strict as its
// verifier: registers must be set before use, and r1 is no number until it is.
func execute(prog []byte, kind, access, major, minor uint32) (uint64, error) {
	ctx := binary.LittleEndian.AppendUint32(nil, access<<16|kind)
	ctx = binary.LittleEndian.AppendUint32(ctx, major)
	ctx = binary.LittleEndian.AppendUint32(ctx, minor)
	var reg [11]uint64
	var number [11]bool // the register holds one
	for pc := 0; pc < len(prog)/insnBytes; pc++ {
		in := prog[pc*insnBytes:]
		op, dst, src := in[0], in[1]&15, in[1]>>4
		off := int16(binary.LittleEndian.Uint16(in[2:]))
		imm := uint64(int32(binary.LittleEndian.Uint32(in[4:])))
		if int(dst) >= len(reg)-1 || int(src) >= len(reg)-1 {
			return 0, fmt.Errorf("insn %d: r%d, r%d", pc, dst, src)
		}
		const class, source = 7, 8
		readsDst := op != opLoad32 && op != opMovImm && op != opMov && op != opExit
		readsSrc := op&source != 0 && op&class == 7
		if readsDst && !number[dst] || readsSrc && !number[src] {
			return 0, fmt.Errorf("insn %d: r%d or r%d is not a number", pc, dst, src)
		}
		switch op {
		case opLoad32:
			if src != 1 || number[1] || off < 0 || off%4 != 0 || int(off)+4 > len(ctx) {
				return 0, fmt.Errorf("insn %d loads from r%d%+d", pc, src, off)
			}
			reg[dst] = uint64(binary.LittleEndian.Uint32(ctx[off:]))
		case opMovImm:
			reg[dst] = imm
		case opMov:
			reg[dst] = reg[src]
		case opAndImm:
			reg[dst] &= imm
		case opAnd:
			reg[dst] &= reg[src]
		case opOr:
			reg[dst] |= reg[src]
		case opXor:
			reg[dst] ^= reg[src]
		case opXor32:
			reg[dst] = uint64(uint32(reg[dst]) ^ uint32(imm))
		case opSubImm:
			reg[dst] -= imm
		case opRshImm:
			reg[dst] >>= imm
		case opMulImm:
			reg[dst] *= imm
		case opExit:
			if !number[0] || reg[0] > 1 {
				return 0, fmt.Errorf("returns %d", reg[0])
			}
			return reg[0], nil
		default:
			return 0, fmt.Errorf("insn %d: opcode %#x", pc, op)
		}
		number[dst] = true
	}
	return 0, fmt.Errorf("ran off the end")
}

// decide is what the rules mean, said the simplest way: each kind of access
// that is asked for must be allowed by the last rule that covers it. (So asking
// for nothing is allowed; the kernel does when a device is to be executed,
// which then fails for other reasons.)
func decide(rules []devRule, kind, access, major, minor uint32) bool {
	matches := func(r devRule) bool {
		return (r.kind == devAny || uint32(r.kind) == kind) &&
			(r.major == anyNumber || r.major == major) && (r.minor == anyNumber || r.minor == minor)
	}
	for bit := uint32(1); bit <= accAll; bit <<= 1 {
		if access&bit == 0 {
			continue
		}
		allowed := false
		for _, r := range rules {
			if matches(r) && uint32(r.access)&bit != 0 {
				allowed = r.allow
			}
		}
		if !allowed {
			return false
		}
	}
	return true
}

func ptr[T any](v T) *T { return &v }

func dev(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Access: access}
	if major >= 0 {
		d.Major = ptr(major)
	}
	if minor >= 0 {
		d.Minor = ptr(minor)
	}
	return d
}

func TestDeviceProgram(t *testing.T) {
	denyAll := specs.LinuxDeviceCgroup{Access: "rwm"}
	type want struct {
		kind, major, minor, access uint32
		allow                      bool
	}
	const r, w, m = accRead, accWrite, accMknod
	tests := []struct {
		name  string
		rules []specs.LinuxDeviceCgroup
		want  []want
	}{
		{"no rules", nil, []want{
			{devChar, 1, 3, r | w, true},     // null
			{devChar, 136, 7, r | w, true},   // a pty
			{devChar, 5, 2, r | w, true},     // ptmx
			{devChar, 1, 1, r, false},        // mem
			{devChar, 1, 11, w, false},       // kmsg
			{devChar, 10, 200, r | w, false}, // tun
			{devBlock, 8, 0, m, true},        // making a node
			{devBlock, 8, 0, r, false},       // is not opening it
			{devBlock, 8, 0, r | m, false},
			{devBlock, 1, 3, r, false}, // the number of null, but a block device
		}},
		{"containerd's default", []specs.LinuxDeviceCgroup{denyAll}, []want{
			{devChar, 1, 9, r, true},
			{devBlock, 254, 0, r, false},
		}},
		{"privileged", []specs.LinuxDeviceCgroup{denyAll, dev(true, "a", -1, -1, "rwm")}, []want{
			{devBlock, 8, 0, r | w | m, true},
			{devChar, 1, 1, r, true},
		}},
		{"one disk, reading only", []specs.LinuxDeviceCgroup{denyAll, dev(true, "b", 8, 1, "r")}, []want{
			{devBlock, 8, 1, r, true},
			{devBlock, 8, 1, w, false},
			{devBlock, 8, 1, r | w, false},
			{devBlock, 8, 2, r, false},
			{devChar, 8, 1, r, false},
		}},
		{"writing denied again", []specs.LinuxDeviceCgroup{dev(true, "b", 8, -1, "rwm"), dev(false, "b", 8, 1, "w")}, []want{
			{devBlock, 8, 1, r, true},
			{devBlock, 8, 1, w, false},
			{devBlock, 8, 1, r | w, false},
			{devBlock, 8, 2, r | w, true},
		}},
		{"access from two rules", []specs.LinuxDeviceCgroup{dev(true, "c", 10, 200, "r"), dev(true, "c", 10, -1, "w")}, []want{
			{devChar, 10, 200, r | w, true},
			{devChar, 10, 201, r | w, false},
		}},
		{"the defaults cannot be taken away", []specs.LinuxDeviceCgroup{dev(false, "c", 1, 3, "rwm")}, []want{
			{devChar, 1, 3, r | w, true},
		}},
		{"allow, then deny all", []specs.LinuxDeviceCgroup{dev(true, "b", 8, 0, "rwm"), dev(false, "", -1, -1, "")}, []want{
			{devBlock, 8, 0, r, false},
		}},
	}
	for _, tt := range tests {
		rules, err := deviceRules(tt.rules)
		require.NoError(t, err, tt.name)
		prog := encode(deviceProgram(rules))
		for _, w := range tt.want {
			got, err := execute(prog, w.kind, w.access, w.major, w.minor)
			require.NoError(t, err, tt.name)
			require.Equal(t, w.allow, got == 1, "%s: kind %d %d:%d access %d", tt.name, w.kind, w.major, w.minor, w.access)
		}
	}
}

func TestDeviceRulesRefuse(t *testing.T) {
	for _, d := range []specs.LinuxDeviceCgroup{
		dev(true, "p", 1, 1, "rwm"),
		dev(true, "c", 1, 1, "rwx"),
		dev(true, "c", 1, 1, ""),
		{Allow: true, Type: "c", Major: ptr(int64(-2)), Access: "r"},
		{Allow: true, Type: "b", Minor: ptr(int64(1) << 32), Access: "r"},
	} {
		_, err := deviceRules([]specs.LinuxDeviceCgroup{d})
		require.ErrorIs(t, err, sys.ErrInvalid, "%+v", d)
	}
	_, err := deviceRules(make([]specs.LinuxDeviceCgroup, maxDeviceRules+1))
	require.ErrorIs(t, err, sys.ErrInvalid)
}

// Few numbers, so that rules overlap.
var (
	genNumber = rapid.SampledFrom([]uint32{0, 1, 3, 5, 8, 136, 1 << 31, anyNumber - 1, anyNumber})
	genRule   = rapid.Custom(func(t *rapid.T) devRule {
		return devRule{
			allow:  rapid.Bool().Draw(t, "allow"),
			kind:   rapid.Uint8Max(devChar).Draw(t, "kind"),
			access: rapid.Uint8Range(1, accAll).Draw(t, "access"),
			major:  genNumber.Draw(t, "major"),
			minor:  genNumber.Draw(t, "minor"),
		}
	})
)

// The program means what the rules mean.
func TestDeviceProgramMatchesRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := rapid.SliceOfN(genRule, 0, 12).Draw(t, "rules")
		prog := encode(deviceProgram(rules))
		for range 20 {
			kind := rapid.Uint32Range(devBlock, devChar).Draw(t, "kind")
			access := rapid.Uint32Max(accAll).Draw(t, "access")
			major, minor := genNumber.Draw(t, "major"), genNumber.Draw(t, "minor")
			if major == anyNumber || minor == anyNumber {
				continue // no device has it
			}
			got, err := execute(prog, kind, access, major, minor)
			if err != nil {
				t.Fatal(err)
			}
			if want := decide(rules, kind, access, major, minor); want != (got == 1) {
				t.Fatalf("kind %d %d:%d access %d: program says %d, rules say %v", kind, major, minor, access, got, want)
			}
		}
	})
}

// FuzzDeviceRules checks the same from the specification's end, with rules cut
// out of arbitrary bytes, and that leaving out rules changed nothing.
func FuzzDeviceRules(f *testing.F) {
	f.Add([]byte{0, 0, 7, 0, 0, 1, 1, 3, 8, 1}, uint8(2), uint8(6), uint8(8), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, kind, access, major, minor uint8) {
		var list []specs.LinuxDeviceCgroup
		var all []devRule
		for len(data) >= 5 && len(list) <= maxDeviceRules {
			d := specs.LinuxDeviceCgroup{Allow: data[0]&1 != 0, Type: []string{"", "a", "b", "c", "u", "p"}[data[1]%6]}
			for i, c := range "mrw" {
				if data[2]>>i&1 != 0 {
					d.Access += string(c)
				}
			}
			if data[0]&2 != 0 {
				d.Major = ptr(int64(int8(data[3])))
			}
			if data[0]&4 != 0 {
				d.Minor = ptr(int64(int8(data[4])))
			}
			data = data[5:]
			list = append(list, d)
			if r, err := deviceRule(d); err == nil {
				all = append(all, r)
			}
		}
		rules, err := deviceRules(list)
		if (rules == nil) != (err != nil) {
			t.Fatalf("%v, %v", rules, err)
		}
		if err != nil {
			return
		}
		all = append(all, defaultDevices[:]...)
		k, a := uint32(kind%2+1), uint32(access%accAll+1)
		got, err := execute(encode(deviceProgram(rules)), k, a, uint32(major), uint32(minor))
		if err != nil {
			t.Fatal(err)
		}
		if want := decide(all, k, a, uint32(major), uint32(minor)); want != (got == 1) {
			t.Fatalf("%+v: kind %d %d:%d access %d: program says %d, rules say %v", list, k, major, minor, a, got, want)
		}
	})
}
