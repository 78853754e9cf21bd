package house

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mayImport lists, for every package of the project, which others of it may be
// imported directly. DO NOT CHANGE THIS TABLE TO FIX A BUILD: it is the design
// (docs/architecture.md). "x/..." stands for x and everything below it.
var mayImport = map[string][]string{
	"internal/sys":   {},
	"api/...":        {"api/..."},
	"cgroup2":        {"internal/sys"},
	"vsockstream":    {"internal/sys"},
	"nsexec/seccomp": {"internal/sys"},
	"nsexec":         {"internal/sys"},
	"rootfs":         {"internal/sys", "nsexec"},
	"tasksvc":        {"api/...", "internal/sys", "cgroup2", "vsockstream", "nsexec", "nsexec/seccomp", "rootfs"},

	"cmd/vminitd":         {"internal/sys", "cmd/vminitd/...", "cgroup2", "vsockstream", "nsexec", "rootfs", "tasksvc"},
	"cmd/vminitd/boot":    {"internal/sys"},
	"cmd/vminitd/clock":   {"internal/sys"},
	"cmd/vminitd/devices": {"internal/sys"},
	"cmd/vminitd/netup":   {"internal/sys", "cmd/vminitd/boot"},
	"cmd/vminitd/power":   {"internal/sys", "cmd/vminitd/boot"},
	"cmd/vminitctl/...":   {"..."},

	"internal/kcheck":     {"internal/sys", "nsexec"}, // the daemon must not import it
	"internal/vhostvsock": {"internal/sys"},
	"internal/initramfs":  {"internal/sys"},
	"internal/rootimage":  {"internal/sys"},
	"internal/microvm":    {"internal/sys", "internal/vhostvsock", "internal/initramfs", "internal/rootimage", "vsockstream", "api/..."},
	"internal/vmtest/...": {"..."},
	"internal/bench":      {"..."},
	"internal/rungs":      {"..."},
	"internal/syscalls":   {"..."},
	"internal/house":      {},
	"kernel":              {},
}

// heavy must not be linked into vminitd: each costs bytes or start time that a
// guest should not pay.
var heavy = []string{
	"net/http", "os/exec", "text/template", "html/template", "github.com/spf13/cobra", "github.com/containerd/containerd/v2",
	"google.golang.org/grpc", "github.com/cilium/ebpf", "crypto/rand", "regexp", "archive/tar",
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-tags", "no_grpc", "-f", "{{.ImportPath}}:{{join .Imports \" \"}}", "vminit/...").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(strings.TrimSpace(line), ":")
		pkg = strings.TrimPrefix(pkg, "vminit/")
		allowed, known := rules(pkg)
		if !known {
			t.Errorf("%s is not in the table", pkg)
			continue
		}
		for _, dep := range strings.Fields(imports) {
			dep, ours := strings.CutPrefix(dep, "vminit/")
			if ours && !slices.ContainsFunc(allowed, func(rule string) bool { return matches(rule, dep) }) {
				t.Errorf("%s must not import %s", pkg, dep)
			}
		}
	}
}

func TestDaemonStaysLight(t *testing.T) {
	out, err := exec.Command("go", "list", "-tags", "no_grpc", "-deps", "vminit/cmd/vminitd").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	for _, h := range heavy {
		require.NotContains(t, deps, h)
	}
}

// rules finds the most specific entry of the table.
func rules(pkg string) ([]string, bool) {
	if r, ok := mayImport[pkg]; ok {
		return r, true
	}
	for pattern, r := range mayImport {
		if matches(pattern, pkg) {
			return r, true
		}
	}
	return nil, false
}

func matches(pattern, pkg string) bool {
	prefix, wild := strings.CutSuffix(pattern, "...")
	if !wild {
		return pattern == pkg
	}
	return strings.HasPrefix(pkg+"/", prefix)
}
