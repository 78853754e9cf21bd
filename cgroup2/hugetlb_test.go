package cgroup2

import (
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestHugeTLBLimit(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "hugetlb")
	c := newCgroup(t, tree, "c")
	size := tree.pageSizes()[0]
	require.Equal(t, "2MB", size)
	writes, err := Plan(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: size, Limit: 4 << 20}}})
	require.NoError(t, err)
	require.NoError(t, c.Apply(writes))
	require.Equal(t, "4194304\n", contents(t, c, "hugetlb.2MB.max"))
	require.Equal(t, "4194304\n", contents(t, c, "hugetlb.2MB.rsvd.max"))

	err = c.Apply([]Write{{File: "hugetlb.3MB.max", Value: "1"}})
	require.ErrorIs(t, err, sys.ErrUnsupported)
	require.ErrorContains(t, err, "hugetlb is enabled")

	free, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	require.NoError(t, err)
	if n, err := parseValue(free); err != nil || n < 4 {
		t.Logf("%s huge pages are free: the effect of the limit is not looked at", free)
		return
	}
	p := start(t, c, "huge 4", "<nil>")
	s, err := c.Stats()
	require.NoError(t, err)
	require.Equal(t, HugeTLBStats{PageSize: "2MB", Current: 4 << 20, Max: 4 << 20}, s.HugeTLB[0])
	p.Process.Kill()
	_ = p.Wait()
	start(t, c, "huge 6", "cannot allocate memory")
}
