package cgroup2

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// blockDevice finds a disk that can be read, and its number.
func blockDevice(t *testing.T) (path string, dev specs.LinuxBlockIODevice) {
	t.Helper()
	disks, _ := filepath.Glob("/sys/block/*/dev")
	for _, file := range disks {
		number, err := os.ReadFile(file)
		require.NoError(t, err)
		path := "/dev/" + filepath.Base(filepath.Dir(file))
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		size, _ := unix.Seek(fd, 0, unix.SEEK_END)
		unix.Close(fd)
		if size < 1<<20 {
			continue
		}
		major, minor, err := parseDevice([]byte(strings.TrimSpace(string(number))))
		require.NoError(t, err)
		return path, specs.LinuxBlockIODevice{Major: int64(major), Minor: int64(minor)}
	}
	t.Skip("no block device of 1 MB or more")
	return "", dev
}

func TestIOLimit(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "io")
	path, dev := blockDevice(t)
	c := newCgroup(t, tree, "c")
	const rate = 512 << 10
	apply(t, c, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev, Rate: rate}},
		ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev, Rate: 100}},
	}})
	number := fmt.Sprintf("%d:%d", dev.Major, dev.Minor)
	require.Equal(t, number+" rbps=524288 wbps=max riops=max wiops=100\n", contents(t, c, "io.max"))

	p := start(t, c, "read "+path+" 1024", "")
	line, err := p.out.ReadString('\n')
	require.NoError(t, err)
	ms, err := strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	require.Greater(t, ms, 1000, "a megabyte at half a megabyte a second")
	s, err := c.Stats()
	require.NoError(t, err)
	read := uint64(0) // there may be others: what the program itself was read from
	for _, u := range s.IO.Usage {
		if u.Major == uint64(dev.Major) && u.Minor == uint64(dev.Minor) {
			read = u.RBytes
		}
	}
	require.GreaterOrEqual(t, read, uint64(1<<20))

	// A failed update puts the device's line back.
	writes, err := Plan(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev}},
		ThrottleReadIOPSDevice: []specs.LinuxThrottleDevice{
			{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 4000, Minor: 1}, Rate: 1},
		},
	}})
	require.NoError(t, err)
	err = c.Update(append(writes[1:], writes[0]))
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.NotErrorIs(t, err, sys.ErrNotFound)
	require.ErrorContains(t, err, "4000:1")
	require.Equal(t, number+" rbps=524288 wbps=max riops=max wiops=100\n", contents(t, c, "io.max"))
}

// The weight lands in BFQ's file or, without BFQ, in that of blk-iocost.
func TestIOWeight(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "io")
	c := newCgroup(t, tree, "c")
	writes, err := Plan(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500))}})
	require.NoError(t, err)
	require.NoError(t, c.Update(writes))
	if data, err := c.dir.read("io.bfq.weight"); err == nil {
		require.Equal(t, "default 500\n", string(data))
	} else {
		require.Equal(t, "default 4950\n", contents(t, c, "io.weight"))
	}
}
