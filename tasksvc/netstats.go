package tasksvc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"golang.org/x/sys/unix"
)

// maxNetDev bounds /proc/PID/net/dev: a container may make any number of
// interfaces.
const maxNetDev = 256 << 10

// network counts what went over the interfaces of the container's own network
// namespace; nothing once its init has ended.
func (c *container) network() ([]*stats.NetworkStat, error) {
	name := fmt.Sprintf("/proc/%d/net/dev", c.init.pid())
	data, err := readProc(name, maxNetDev)
	// Whether the pid was still our process is asked after reading: as long
	// as it is not reaped, nobody else can get its number.
	if c.init.handle.Signal(0) != nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := parseNetDev(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return all, nil
}

// readProc reads up to limit bytes of a file of procfs.
func readProc(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// parseNetDev decodes /proc/PID/net/dev (proc_pid_net(5)): two lines of
// headings, then one for each interface. A last line without its end is left
// out.
func parseNetDev(data []byte) ([]*stats.NetworkStat, error) {
	var all []*stats.NetworkStat
	n := 0
	for line := range bytes.Lines(data) {
		if n++; n <= 2 || !bytes.HasSuffix(line, []byte("\n")) {
			continue
		}
		// The name of an interface may contain a colon, counters may not.
		colon := bytes.LastIndexByte(line, ':')
		fields := bytes.Fields(line[colon+1:])
		if colon < 0 || len(fields) < 16 {
			return nil, fmt.Errorf("line %.80q is not an interface's", line)
		}
		s := &stats.NetworkStat{Name: string(bytes.ToValidUTF8(bytes.TrimLeft(line[:colon], " "), []byte("\uFFFD")))}
		for i, to := range []*uint64{&s.RxBytes, &s.RxPackets, &s.RxErrors, &s.RxDropped, nil, nil, nil, nil, &s.TxBytes, &s.TxPackets, &s.TxErrors, &s.TxDropped} {
			if to == nil {
				continue
			}
			var err error
			if *to, err = strconv.ParseUint(string(fields[i]), 10, 64); err != nil {
				return nil, fmt.Errorf("line %.80q: %w", line, err)
			}
		}
		all = append(all, s)
	}
	return all, nil
}
