package tasksvc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
	"vminit/nsexec/seccomp"
)

func TestVersions(t *testing.T) {
	for _, v := range []string{"1.0.0", "1.0.2-dev", "1.1.0-rc.1", "1.2.1", "1.3.0", "1.3.99", "1.3.0+build.7", "1.0.0-rc5+a-b", "1.0.0--.0a"} {
		require.NoError(t, checkVersion(v), v)
	}
	for _, v := range []string{"", "1", "1.0", "1.0.0.0", "0.9.0", "1.4.0", "1.4.0-rc.1", "2.0.0", "01.0.0", "1.00.0", "1.0.x", "v1.0.0", "1.0.0-", "1.0.0+", "1.0.0-a..b",
		"1.0.0-01", "1.0.0-ä", " 1.0.0", "1.-1.0", "1.0.0\n", "1.99999999999999999999.0"} {
		require.ErrorIs(t, checkVersion(v), sys.ErrInvalid, v)
	}
}

// TestRefusedConfigs: what is wrong in a config without looking at namespaces.
func TestRefusedConfigs(t *testing.T) {
	for name, x := range map[string]struct {
		edit func(*specs.Spec)
		text string
	}{
		"no version":  {func(s *specs.Spec) { s.Version = "" }, "ociVersion is missing"},
		"no root":     {func(s *specs.Spec) { s.Root = nil }, "root.path is missing"},
		"annotation":  {func(s *specs.Spec) { s.Annotations = map[string]string{"": "x"} }, "a key is empty"},
		"no args":     {func(s *specs.Spec) { s.Process.Args = nil }, "process.args is empty"},
		"no program":  {func(s *specs.Spec) { s.Process.Args = []string{""} }, "process.args is empty"},
		"relative":    {func(s *specs.Spec) { s.Process.Cwd = "tmp" }, "is not an absolute path"},
		"commandLine": {func(s *specs.Spec) { s.Process.CommandLine = "cmd" }, "is for Windows"},
		"username":    {func(s *specs.Spec) { s.Process.User.Username = "root" }, "is for Windows: use uid and gid"},
		"umask":       {func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0o1000)) }, "more than 0777"},
		"oom":         {func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(1001) }, "not between -1000 and 1000"},
		"uid":         {func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 }, "not a valid id"},
		"gid":         {func(s *specs.Spec) { s.Process.User.GID = 1<<32 - 1 }, "not a valid id"},
		"rlimit":      {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, `unknown type "RLIMIT_X"`},
		"scheduler":   {func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} }, "process.scheduler: unknown policy"},
		"io class":    {func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} }, "process.ioPriority: unknown class"},
		"nul":         {func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} }, "NUL byte"},
		"personality": {func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{} }, "linux.personality: unknown domain"},
		"memory":      {func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} }, "linux.memoryPolicy: unknown mode"},
		"devices":     {func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a/b": {}} }, "not the name of a network device"},
		"new name":    {func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a": {Name: "%s"}} }, "not the name of a network device"},
		"no network": {func(s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[:2]
			s.Hostname, s.Linux.NetDevices = "", map[string]specs.LinuxNetDevice{"a": {}}
		}, "linux.netDevices needs a network namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			s := testSpec("true")
			x.edit(s)
			pl, err := compileBytes(t, s)
			require.ErrorIs(t, err, sys.ErrInvalid)
			require.ErrorContains(t, err, x.text)
			require.Nil(t, pl)
		})
	}
}

// compileBytes takes a config all the way from JSON.
func compileBytes(t testing.TB, s *specs.Spec) (*plan, error) {
	data, err := json.Marshal(s)
	require.NoError(t, err)
	return compileJSON(data)
}

func compileJSON(data []byte) (*plan, error) {
	spec := new(specs.Spec)
	if err := decodeSpec(data, spec); err != nil {
		return nil, err
	}
	ns, err := parseNamespaces(spec.Linux.Namespaces)
	if err != nil {
		return nil, err
	}
	return compileInit(spec, ns, compileOptions{id: "id", bundle: "/bundle", cgroup: "/cgroup", keyring: "_ses.id", seccomp: new(seccomp.Cache)})
}

// Parts for other platforms, and what only cgroup v1 has, are ignored, and said.
func TestIgnored(t *testing.T) {
	s := testSpec("true")
	s.Solaris, s.Windows, s.VM, s.ZOS, s.FreeBSD = &specs.Solaris{}, &specs.Windows{}, &specs.VM{}, &specs.ZOS{}, &specs.FreeBSD{}
	s.Linux.Resources = &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Kernel: ptr(int64(1)), Swappiness: ptr(uint64(60)), UseHierarchy: ptr(false)},
		BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{{LeafWeight: ptr(uint16(10))}}},
	}
	pl, err := compileBytes(t, s)
	require.NoError(t, err)
	defer pl.program.Close()
	var names []string
	for _, w := range pl.warnings {
		name, _, _ := strings.Cut(w, " is ignored: ")
		names = append(names, strings.TrimPrefix(name, "linux.resources."))
	}
	require.Equal(t, []string{"solaris", "windows", "vm", "zos", "freebsd", "memory.kernel", "memory.swappiness", "memory.useHierarchy", "blockIO.leafWeight"}, names)

	s = testSpec("true")
	s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{UseHierarchy: ptr(true), Kernel: ptr(int64(-1))}}
	pl, err = compileBytes(t, s)
	require.NoError(t, err)
	require.Empty(t, pl.warnings)
	require.NoError(t, pl.program.Close())
}

// Unknown properties are ignored, as config.md, "Extensibility", has it.
func TestUnknownProperties(t *testing.T) {
	pl, err := compileJSON([]byte(`{"ociVersion":"1.0.0","root":{"path":"r","speed":9},"moon":{},"linux":{"namespaces":[{"type":"mount","phase":1}]},"process":{"cwd":"/","args":["a"],"mood":"good"}}`))
	require.NoError(t, err)
	require.NoError(t, pl.program.Close())
}

// FuzzSpec: whatever config.json holds, decoding and compiling it gives a plan
// or an error of the caller's, never both or neither, and does not panic.
func FuzzSpec(f *testing.F) {
	for _, s := range []*specs.Spec{testSpec("true"), edited(plainSpec(), fullUserNS), edited(plainSpec(), func(s *specs.Spec) {
		busyProcess(s.Process)
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1}}
		s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a": {}}
		s.Linux.Personality, s.Linux.MemoryPolicy = &specs.LinuxPersonality{Domain: "LINUX"}, &specs.LinuxMemoryPolicy{Mode: "MPOL_BIND", Nodes: "0"}
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/hook", Timeout: ptr(1)}}}
		s.Linux.Seccomp = notifying("/run/agent")
		addNamespaces(s, specs.LinuxNamespace{Type: "time"}, specs.LinuxNamespace{Type: "network", Path: "/n"}, specs.LinuxNamespace{Type: "user", Path: "/u"})
	})} {
		data, err := json.Marshal(s)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		pl, err := compileJSON(data)
		if (pl == nil) != (err != nil) {
			t.Fatalf("%v and %v", pl, err)
		}
		if err == nil {
			_ = pl.program.String()
			pl.program.Close()
		}
	})
}

func TestSpecFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "config.json")
	for text, want := range map[string]string{"": "the file is empty", "{": "unexpected end of JSON", `{"ociVersion":1}`: "cannot unmarshal"} {
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
		_, err := loadSpec(dir)
		require.ErrorIs(t, err, sys.ErrInvalid, text)
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, os.Truncate(name, maxSpec+1))
	_, err := loadSpec(dir)
	require.ErrorContains(t, err, "more than the 8388608 allowed")
	require.NoError(t, os.Remove(name))
	require.NoError(t, os.Symlink("/etc/passwd", name))
	_, err = loadSpec(dir)
	require.Error(t, err)
}
