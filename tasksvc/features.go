package tasksvc

import (
	"maps"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"vminit/nsexec"
	"vminit/nsexec/seccomp"
	"vminit/rootfs"
)

// versionAnnotation says in the features structure which build it is of.
const versionAnnotation = "io.github.vminit.version"

// Features returns what this runtime understands of a config.json, whatever
// the kernel makes of it (features.md, features-linux.md). It is taken from the
// tables that configs are compiled with. version is that of the build.
func Features(version string) *features.Features {
	yes, no := true, false
	return &features.Features{
		OCIVersionMin: strconv.Itoa(specMajor) + ".0.0",
		OCIVersionMax: strconv.Itoa(specMajor) + "." + strconv.Itoa(maxSpecMinor) + ".0",
		Hooks:         hookNames[:],
		MountOptions:  rootfs.MountOptions(),
		Annotations:   map[string]string{versionAnnotation: version},
		Linux: &features.Linux{
			Namespaces:   text(slices.Sorted(maps.Keys(nsFlags))),
			Capabilities: nsexec.Capabilities(),
			Cgroup:       &features.Cgroup{V1: &no, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &yes},
			Seccomp: &features.Seccomp{
				Enabled: &yes, Actions: text(seccomp.Actions()), Operators: text(seccomp.Operators()), Archs: text(seccomp.Architectures()),
				KnownFlags: text(seccomp.Flags()), SupportedFlags: text(seccomp.Flags()),
			},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MemoryPolicy:    &features.MemoryPolicy{Modes: nsexec.MemoryModes(), Flags: nsexec.MemoryFlags()},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
	}
}

// text makes plain strings of names.
func text[S ~string](names []S) []string {
	list := make([]string, 0, len(names))
	for _, n := range names {
		list = append(list, string(n))
	}
	return list
}
