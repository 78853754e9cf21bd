package tasksvc

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestPlans compares what containers would be made of with golden files; it
// needs no privileges.
func TestPlans(t *testing.T) {
	for name, edit := range map[string]func(*specs.Spec){
		"default": func(*specs.Spec) {},
		"terminal": func(s *specs.Spec) {
			s.Process.Terminal = true
			s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5, 10}}
		},
		"userns": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		},
		"joined": func(s *specs.Spec) {
			s.Linux.Namespaces[4].Path = "/proc/1/ns/net"
			s.Process.NoNewPrivileges = false
			s.Linux.Sysctl = map[string]string{"kernel.msgmax": "1000"}
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := testSpec("true")
			edit(spec)
			dir := t.TempDir()
			data, err := json.Marshal(spec)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
			got, err := Plan(dir)
			require.NoError(t, err)
			got = strings.ReplaceAll(got, dir, "/bundle")
			golden := filepath.Join("testdata", "plan-"+name+".golden")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}
