package cgroup2

import (
	"bytes"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// attachedPrograms returns the ids of the device filters of one cgroup.
func attachedPrograms(t *testing.T, c *Cgroup) []uint32 {
	t.Helper()
	ids := make([]uint32, 16)
	attr := struct {
		target, attachType, queryFlags, attachFlags uint32
		ids                                         unsafe.Pointer
		count                                       uint32
		_                                           [bpfAttrSize - 28]byte
	}{
		target: uint32(c.Dir().Fd()), attachType: unix.BPF_CGROUP_DEVICE,
		ids: unsafe.Pointer(&ids[0]), count: uint32(len(ids)),
	}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr))
	require.NoError(t, err)
	return ids[:attr.count]
}

// Kernels 6.17 to 7.1 write behind an attr that is shorter than theirs. One of
// bpfAttrSize, which is what every call here has, stays whole.
func TestQueryStaysInItsAttr(t *testing.T) {
	c := newCgroup(t, newTree(t), "c")
	var ids [16]uint32
	attr := struct {
		target, attachType, queryFlags, attachFlags uint32
		ids                                         unsafe.Pointer
		count                                       uint32
		rest                                        [bpfAttrSize - 28]byte
		behind                                      [128]byte
	}{target: uint32(c.Dir().Fd()), attachType: unix.BPF_CGROUP_DEVICE, ids: unsafe.Pointer(&ids), count: uint32(len(ids))}
	canary := bytes.Repeat([]byte{0xa5}, len(attr.behind))
	copy(attr.behind[:], canary)
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr))
	require.NoError(t, err)
	require.Equal(t, canary, attr.behind[:])
}
