package tasksvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxSpec bounds config.json. containerd's are some 20 KiB; a megabyte of
// mounts and environment has been seen.
const maxSpec = 8 << 20

// loadSpec reads and checks <bundle>/config.json.
func loadSpec(bundle string) (*specs.Spec, error) {
	name := filepath.Join(bundle, "config.json")
	data, err := readRegular(name, maxSpec)
	if err != nil {
		return nil, err
	}
	spec := new(specs.Spec)
	if err := decodeSpec(data, spec); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return spec, nil
}

// readRegular reads a file that must be regular and no larger than limit. It
// neither follows a link nor blocks on a fifo.
func readRegular(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, sys.Mark(sys.ErrInvalid, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, sys.Invalidf("%s is not a regular file", name)
	}
	if st.Size() > limit {
		return nil, sys.Invalidf("%s is %d bytes long, more than the %d allowed", name, st.Size(), limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// decodeSpec decodes and checks a config. Errors are the caller's fault.
func decodeSpec(data []byte, spec *specs.Spec) error {
	if len(data) == 0 {
		return sys.Invalidf("the file is empty")
	}
	if err := json.Unmarshal(data, spec); err != nil {
		return sys.Mark(sys.ErrInvalid, err)
	}
	return checkSpec(spec)
}

// checkSpec refuses what cannot be done, so that nothing is silently left out.
func checkSpec(s *specs.Spec) error {
	if s.Version == "" {
		return sys.Invalidf("ociVersion is missing")
	}
	if major, _, _ := strings.Cut(s.Version, "."); major != "1" {
		return sys.Invalidf("ociVersion %s is not supported: 1.0 to 1.3 are", s.Version)
	}
	if s.Root == nil || s.Root.Path == "" {
		return sys.Invalidf("root.path is missing")
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Process != nil {
		if err := checkProcess(s.Process); err != nil {
			return err
		}
	}
	l := s.Linux
	for _, x := range []struct {
		asked bool
		name  string
	}{
		{s.Hooks != nil && !emptyHooks(s.Hooks), "hooks"},
		{l.IntelRdt != nil, "linux.intelRdt"},
		{l.MemoryPolicy != nil, "linux.memoryPolicy"},
		{l.Personality != nil, "linux.personality"},
		{len(l.TimeOffsets) > 0, "linux.timeOffsets"},
		{len(l.NetDevices) > 0, "linux.netDevices"},
		{l.MountLabel != "", "linux.mountLabel"},
	} {
		if x.asked {
			return sys.Unsupportedf("%s is not supported yet", x.name)
		}
	}
	return nil
}

func emptyHooks(h *specs.Hooks) bool {
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) == 0 //nolint:staticcheck // prestart is deprecated, not gone
}

func checkProcess(p *specs.Process) error {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return sys.Invalidf("process.args is empty")
	}
	if !filepath.IsAbs(p.Cwd) {
		return sys.Invalidf("process.cwd %q is not an absolute path", p.Cwd)
	}
	if p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000) {
		return sys.Invalidf("process.oomScoreAdj %d is not between -1000 and 1000", *p.OOMScoreAdj)
	}
	for _, x := range []struct {
		asked bool
		name  string
	}{
		{p.ApparmorProfile != "", "process.apparmorProfile"},
		{p.SelinuxLabel != "", "process.selinuxLabel"},
		{p.Scheduler != nil, "process.scheduler"},
		{p.IOPriority != nil, "process.ioPriority"},
		{p.ExecCPUAffinity != nil, "process.execCPUAffinity"},
	} {
		if x.asked {
			return sys.Unsupportedf("%s is not supported yet", x.name)
		}
	}
	return nil
}
