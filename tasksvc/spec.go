package tasksvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
	data := make([]byte, st.Size()+1)
	n, err := io.ReadFull(f, data)
	if err == nil { // it has grown since
		return nil, sys.Invalidf("%s changes while it is read", name)
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return data[:n], nil
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
// What has a file of its own is checked there.
func checkSpec(s *specs.Spec) error {
	if err := checkVersion(s.Version); err != nil {
		return err
	}
	if s.Root == nil || s.Root.Path == "" {
		return sys.Invalidf("root.path is missing")
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if _, ok := s.Annotations[""]; ok {
		return sys.Invalidf("annotations: a key is empty")
	}
	if s.Process != nil {
		if err := checkProcess(s.Process); err != nil {
			return err
		}
	}
	return checkHooks(s.Hooks)
}

// checkPlan refuses combinations of the config and its namespaces.
func checkPlan(s *specs.Spec, ns namespaces) error {
	l := s.Linux
	if own := ns.all(); own&unix.CLONE_NEWUTS == 0 && (s.Hostname != "" || s.Domainname != "") {
		return sys.Invalidf("hostname and domainname need a UTS namespace that is not the guest's")
	}
	if err := checkIDMaps(l, ns); err != nil {
		return err
	}
	if len(l.TimeOffsets) > 0 && ns.fresh&unix.CLONE_NEWTIME == 0 {
		return sys.Invalidf("linux.timeOffsets needs a new time namespace")
	}
	return checkNetDevices(l.NetDevices, ns.all())
}

// ignored lists what is in a config and has no effect, for the log: parts for
// other platforms, and knobs of cgroup v1 that tune what v2 does not have. The
// spec has unknown properties ignored, not refused; runc and crun pass over the
// knobs, and hosts set them without asking.
func ignored(s *specs.Spec) (warnings []string) {
	warn := func(there bool, name, why string) {
		if there {
			warnings = append(warnings, name+" is ignored: "+why)
		}
	}
	const platform = "it is for another platform"
	warn(s.Solaris != nil, "solaris", platform)
	warn(s.Windows != nil, "windows", platform)
	warn(s.VM != nil, "vm", platform)
	warn(s.ZOS != nil, "zos", platform)
	warn(s.FreeBSD != nil, "freebsd", platform)
	r := s.Linux.Resources
	if r == nil {
		return warnings
	}
	const v1 = "cgroup v2 does not have it"
	if m := r.Memory; m != nil {
		warn(m.Kernel != nil && *m.Kernel > 0, "linux.resources.memory.kernel", v1) //nolint:staticcheck // deprecated, not gone
		warn(m.Swappiness != nil, "linux.resources.memory.swappiness", v1)
		warn(m.UseHierarchy != nil && !*m.UseHierarchy, "linux.resources.memory.useHierarchy", "cgroup v2 is always hierarchical")
	}
	if b := r.BlockIO; b != nil {
		leaf := b.LeafWeight != nil
		for _, d := range b.WeightDevice {
			leaf = leaf || d.LeafWeight != nil
		}
		warn(leaf, "linux.resources.blockIO.leafWeight", v1)
	}
	return warnings
}

func checkProcess(p *specs.Process) error {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return sys.Invalidf("process.args is empty")
	}
	if !filepath.IsAbs(p.Cwd) {
		return sys.Invalidf("process.cwd %q is not an absolute path", p.Cwd)
	}
	if p.CommandLine != "" {
		return sys.Invalidf("process.commandLine is for Windows: use args")
	}
	if p.User.Username != "" {
		return sys.Invalidf("process.user.username is for Windows: use uid and gid")
	}
	if p.User.Umask != nil && *p.User.Umask > 0o777 {
		return sys.Invalidf("process.user.umask %#o is more than 0777", *p.User.Umask)
	}
	if p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000) {
		return sys.Invalidf("process.oomScoreAdj %d is not between -1000 and 1000", *p.OOMScoreAdj)
	}
	return nil
}
