package vmtest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKinds(t *testing.T) {
	require.Equal(t, "socket:", kindOf("socket:[4711]"))
	require.Equal(t, "anon_inode:[pidfd]", kindOf("anon_inode:[pidfd]"))
	require.Equal(t, "/dev/null", kindOf("/dev/null"))
	require.Equal(t, "main", bornIn("goroutine 1 [running]:\nmain.main()\n\t/x.go:1"))
	require.Equal(t, "vminit/tasksvc.(*Service).create", bornIn("goroutine 9 [chan receive]:\na.b()\n\t/x.go:1\ncreated by vminit/tasksvc.(*Service).create in goroutine 7\n\t/y.go:2"))
}

func TestDiff(t *testing.T) {
	b := &Baseline{fds: map[string]int{"socket:": 2, "pipe:": 1}}
	require.Empty(t, b.diff(&Baseline{fds: map[string]int{"pipe:": 1, "socket:": 2}}))
	require.Equal(t, "  descriptor pipe:: 1 before, 0 now\n  descriptor socket:: 2 before, 3 now\n  zombie 7 sh, child of 1: 0 before, 1 now\n",
		b.diff(&Baseline{fds: map[string]int{"socket:": 3}, zombies: map[string]int{"7 sh, child of 1": 1}}))
}
