package cgroup2

import (
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
