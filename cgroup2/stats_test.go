package cgroup2

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// kernelFile is a file as a real kernel printed it.
func kernelFile(t testing.TB, name string) []byte {
	data, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return data
}

// The readers take any directory for a cgroup, so the captured files of a
// whole cgroup are read through the same code as a live one.
func TestStatsOfCapturedCgroup(t *testing.T) {
	fd, err := unix.Open("testdata/kernel-6.1", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	d, err := newDir(fd, "kernel-6.1")
	require.NoError(t, err)
	tree := &Tree{}
	tree.sizesOnce.Do(func() { tree.sizes = []string{"2MB", "1GB"} })
	c := &Cgroup{tree: tree, dir: d}
	defer c.Close()
	s, err := c.Stats()
	require.NoError(t, err)
	require.Equal(t, Stats{
		Pids: &PidsStats{Current: 0, Limit: math.MaxUint64, Peak: 2},
		CPU: &CPUStats{
			Usage: 451263, User: 4604, System: 446659, NrPeriods: 25, NrThrottled: 22, Throttled: 1805441,
			PSI: &Pressure{
				Some: PressureLine{10.14, 1.83, 0.38, 1344254},
				Full: PressureLine{10.14, 1.83, 0.38, 1343794},
			},
		},
		Memory: &MemoryStats{
			File: 49131520, Kernel: 118784, Shmem: 49131520, InactiveAnon: 49131520,
			SlabReclaimable: 114656, SlabUnreclaimable: 3616, Slab: 118272, PgFault: 651,
			Usage: 49258496, UsageLimit: 48 << 20, UsageHigh: 0, SwapLimit: math.MaxUint64, MaxUsage: 48 << 20,
			PSI: &Pressure{Some: PressureLine{Total: 88097}, Full: PressureLine{Total: 88097}},
		},
		MemoryEvents: &MemoryEvents{Max: 43, OOM: 1, OOMKill: 1},
		IO: &IOStats{
			Usage: []IOEntry{{Major: 1, WBytes: 8388608, WIOs: 2048}},
			PSI:   &Pressure{},
		},
		RDMA:    &RDMAStats{},
		HugeTLB: []HugeTLBStats{{PageSize: "2MB", Max: math.MaxUint64}},
	}, s)
	kills, err := c.OOMKills()
	require.NoError(t, err)
	require.Equal(t, uint64(1), kills)
}

func TestParseCPUStat(t *testing.T) {
	s, err := parseCPUStat(kernelFile(t, "kernel-6.18/cpu.stat"))
	require.NoError(t, err)
	require.Equal(t, CPUStats{}, s)
	_, err = parseCPUStat([]byte("usage_usec\n"))
	require.Error(t, err)
}

func TestParsePressure(t *testing.T) {
	p, err := parsePressure([]byte("some avg10=95.70 avg60=78.19 avg300=100.00 total=189542268\n"))
	require.NoError(t, err, "no full line for cpu before 5.13")
	require.Equal(t, Pressure{Some: PressureLine{95.70, 78.19, 100, 189542268}}, p)
	for _, in := range []string{
		"some avg10=NaN\n", "some avg10=1\n", "some avg10=1.234\n", "some avg10=-1.00\n",
		"some avg10=1000.00\n", "some avg10\n", "full total=x\n", "some avg10=max.00\n", "some avg10=.00\n",
	} {
		_, err := parsePressure([]byte(in))
		require.Error(t, err, in)
	}
}

func TestParseMemoryStat(t *testing.T) {
	// One workingset key before Linux 5.9, two since: the sum is the same.
	for _, in := range []string{
		"anon 4096\nworkingset_refault 7\nworkingset_activate 5\nsome_new_key 1\n",
		"anon 4096\nworkingset_refault_anon 3\nworkingset_refault_file 4\nworkingset_activate_anon 1\nworkingset_activate_file 4\n",
	} {
		s, err := parseMemoryStat([]byte(in))
		require.NoError(t, err)
		require.Equal(t, MemoryStats{Anon: 4096, WorkingsetRefault: 7, WorkingsetActivate: 5}, s)
	}
	_, err := parseMemoryStat([]byte("anon -4096\n"))
	require.Error(t, err)
}

// Every key of memory.stat that Metrics has a field for goes to a field of its
// own.
func TestMemoryStatFields(t *testing.T) {
	var in strings.Builder
	keys := strings.Fields(`anon file kernel kernel_stack pagetables percpu sock shmem file_mapped file_dirty
		file_writeback swapcached anon_thp inactive_anon active_anon inactive_file active_file unevictable slab
		slab_reclaimable slab_unreclaimable pgfault pgmajfault workingset_refault workingset_activate
		workingset_nodereclaim pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed
		thp_fault_alloc thp_collapse_alloc`)
	var s MemoryStats
	seen := map[*uint64]string{}
	for _, key := range keys {
		field := s.field([]byte(key))
		require.NotNil(t, field, key)
		require.Empty(t, seen[field], key)
		seen[field] = key
		in.WriteString(key + " 1\n")
	}
	_, err := parseMemoryStat([]byte(in.String()))
	require.NoError(t, err)
}

func TestParseIOStat(t *testing.T) {
	tests := []struct {
		in   string
		want []IOEntry
	}{
		{"", nil},
		{"8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n", []IOEntry{{8, 0, 1, 2, 5, 3, 4, 6}}},
		{"8:0 rbytes=1 wbytes=0 rios=1 wios=0 cost.usage=12 cost.wait=0\n", []IOEntry{{Major: 8, RBytes: 1, RIOs: 1}}},
		{"254:1 254:0 rbytes=7 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n", []IOEntry{{Major: 254, RBytes: 7, RIOs: 1}}},
		{"254:1 \n254:0 rbytes=7\n", []IOEntry{{Major: 254, RBytes: 7}}},
		{"8:0 rbytes=1\n8:16 rbytes=2\n", []IOEntry{{Major: 8, RBytes: 1}, {Major: 8, Minor: 16, RBytes: 2}}},
	}
	for _, tt := range tests {
		got, err := parseIOStat([]byte(tt.in))
		require.NoError(t, err, tt.in)
		require.Equal(t, tt.want, got, tt.in)
	}
	for _, in := range []string{"8 rbytes=1\n", "a:b rbytes=1\n", "8:0 rbytes=x\n", "(unknown) rbytes=1\n"} {
		got, err := parseIOStat([]byte(in))
		require.Error(t, err, in)
		require.Nil(t, got, in)
	}
}

func TestParseRDMA(t *testing.T) {
	got, err := parseRDMA([]byte("mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n"))
	require.NoError(t, err)
	require.Equal(t, []RDMAEntry{{"mlx4_0", 2, 2000}, {"ocrdma1", 3, math.MaxUint32}}, got)
	for _, in := range []string{"mlx4_0 hca_handle\n", "mlx4_0 hca_handle=x\n"} {
		_, err := parseRDMA([]byte(in))
		require.Error(t, err, in)
	}
}

func TestPageSizeName(t *testing.T) {
	for kb, want := range map[uint64]string{64: "64KB", 1024: "1MB", 2048: "2MB", 32768: "32MB", 1 << 20: "1GB", 16 << 20: "16GB"} {
		require.Equal(t, want, pageSizeName(kb))
		require.True(t, isPageSize(want))
	}
	for _, s := range []string{"", "MB", "2M", "2mb", "0MB", "-2MB", "2MB.max", "123456789MB", "2 MB"} {
		require.False(t, isPageSize(s), s)
	}
}

func TestStatsLive(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	start(t, c, "wait", "ready")
	s, err := c.Stats()
	require.NoError(t, err)
	require.NotNil(t, s.CPU, "cpu.stat needs no controller")
	if have, _ := tree.Controllers(); len(have) > 0 && have[0] == "hugetlb" {
		require.NotEmpty(t, s.HugeTLB)
		require.Equal(t, uint64(math.MaxUint64), s.HugeTLB[0].Max)
	}
}

func TestStatsGone(t *testing.T) {
	tree := newTree(t)
	c, err := tree.Create("c")
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Delete(t.Context()))
	_, err = c.Stats()
	require.ErrorIs(t, err, sys.ErrNotFound)
	require.ErrorIs(t, c.Apply([]Write{{File: "cgroup.max.depth", Value: "1"}}), sys.ErrNotFound)
	_, err = c.OOMKills()
	require.ErrorIs(t, err, sys.ErrNotFound)
}

func FuzzStats(f *testing.F) {
	for _, dir := range []string{"kernel-6.1", "kernel-6.18"} {
		files, _ := filepath.Glob(filepath.Join("testdata", dir, "*"))
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseCPUStat(data)
		_, _ = parseMemoryStat(data)
		_, _ = parseMemoryEvents(data)
		_, _ = parseMaxEvent(data)
		_ = parseInotify(data)
		if p, err := parsePressure(data); err == nil && !(p.Some.Avg10 >= 0 && p.Some.Avg10 < 1000) {
			t.Fatalf("%+v", p)
		}
		if entries, err := parseIOStat(data); err != nil && entries != nil {
			t.Fatal("a result beside an error")
		}
		if entries, err := parseRDMA(data); err != nil && entries != nil {
			t.Fatal("a result beside an error")
		}
	})
}

func BenchmarkStats(b *testing.B) {
	fd, err := unix.Open("testdata/kernel-6.1", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	d, err := newDir(fd, "kernel-6.1")
	if err != nil {
		b.Fatal(err)
	}
	c := &Cgroup{tree: &Tree{}, dir: d}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}
