package vmtest

import (
	"context"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// CRI-O CVE-2022-0811 and its kin. That a namespace is joined by path says
// nothing: it may be the guest's. Without the check the sysctls are written and
// the canary sees it.
func TestThreatSysctls(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		for _, name := range []string{
			"kernel.core_pattern", "kernel/core_pattern", "kernel.modprobe", "vm.overcommit_memory", "fs.suid_dumpable", "user.max_user_namespaces", "kernel.hostname.x",
			"net/../kernel/core_pattern", "net.ipv4/../../kernel/core_pattern", "net...kernel.core_pattern", "fs.mqueue./../suid_dumpable", "/kernel/core_pattern", "net", "net.", "kernel.shm_rmid_forced/../core_pattern", "",
			"../sys/kernel/core_pattern", "net/./core/somaxconn",
		} {
			err := g.refused(ctx, t, noRequest(), spoiled(t, func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{name: "|/bin/sh"} }))
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%q: %v", name, err)
		}
		for name, kind := range map[string]specs.LinuxNamespaceType{"kernel.shmmax": specs.IPCNamespace, "net.ipv4.ip_forward": specs.NetworkNamespace, "kernel.hostname": specs.UTSNamespace} {
			for _, pid := range []string{"1", "self", "thread-self"} {
				path := "/proc/" + pid + "/ns/" + map[specs.LinuxNamespaceType]string{specs.IPCNamespace: "ipc", specs.NetworkNamespace: "net", specs.UTSNamespace: "uts"}[kind]
				err := g.refused(ctx, t, noRequest(), spoiled(t, func(s *specs.Spec) {
					s.Hostname = ""
					for i := range s.Linux.Namespaces {
						if s.Linux.Namespaces[i].Type == kind {
							s.Linux.Namespaces[i].Path = path
						}
					}
					s.Linux.Sysctl = map[string]string{name: "1"}
				}))
				require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", path, err)
				require.ErrorContains(t, err, "of the container's own", path)
			}
		}
		err := g.refused(ctx, t, noRequest(), spoiled(t, func(s *specs.Spec) {
			for i := range s.Linux.Namespaces {
				if s.Linux.Namespaces[i].Type == specs.UTSNamespace {
					s.Linux.Namespaces[i].Path = "/proc/1/ns/uts"
				}
			}
		}))
		require.ErrorContains(t, err, "need a UTS namespace that is not the guest's")
	})
}

// crun CVE-2026-30892, containerd CVE-2024-40635: an id that overflows becomes
// root's, or means "leave it as it is".
func TestThreatIDs(t *testing.T) {
	good := string(marshal(t, Spec("/bin/true")))
	unharmed(t, func(ctx context.Context, g *Guest) {
		c := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
		for _, user := range []string{
			`{"uid":4294967295,"gid":0}`, `{"uid":0,"gid":4294967295}`, `{"uid":4294967296,"gid":0}`, `{"uid":0,"gid":18446744073709551616}`, `{"uid":-1,"gid":0}`, `{"uid":-0.5,"gid":0}`, `{"uid":1e30,"gid":0}`,
			`{"uid":"0","gid":0}`, `{"uid":1,"gid":1,"additionalGids":[4294967295]}`, `{"uid":1,"gid":1,"additionalGids":[4294967296]}`, `{"uid":1,"gid":1,"additionalGids":[-1]}`, `{"uid":1,"gid":1,"umask":512}`, `[]`,
		} {
			config := strings.Replace(good, `"user":{"uid":0,"gid":0}`, `"user":`+user, 1)
			require.NotEqual(t, good, config)
			err := g.refused(ctx, t, noRequest(), []byte(config))
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", user, err)
			err = g.rawExec(ctx, c.ID(), `{"cwd":"/","args":["/bin/true"],"user":`+user+`}`)
			require.Equal(t, codes.InvalidArgument, status.Code(err), "exec %s: %v", user, err)
		}
		for _, m := range []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1<<32 - 1, Size: 1}, {ContainerID: 0, HostID: 5, Size: 1<<32 - 1}, {ContainerID: 1, HostID: 1, Size: 1}, {ContainerID: 0, HostID: 0, Size: 0}} {
			err := g.refused(ctx, t, noRequest(), spoiled(t, func(s *specs.Spec) {
				addUserNS(s)
				s.Linux.UIDMappings = []specs.LinuxIDMapping{m}
			}))
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%+v: %v", m, err)
		}
		// Whatever groups the daemon has had, a process has those of its config.
		seen := g.LookInside(ctx, t, c.ID(), Spec().Process)
		require.Empty(t, seen.Groups)
		g.end(t, c)
	})
}
