package tasksvc

import "vminit/nsexec/seccomp"

// Plan compiles the bundle's config as Create would and returns the syscalls a
// container would be made of, printed like strace. It needs no privileges and
// changes nothing.
func Plan(bundle string) (string, error) {
	spec, err := loadSpec(bundle)
	if err != nil {
		return "", err
	}
	ns, err := parseNamespaces(spec.Linux.Namespaces)
	if err != nil {
		return "", err
	}
	pl, err := compileInit(spec, ns, compileOptions{id: "ID", bundle: bundle, cgroup: "/sys/fs/cgroup/vminit/default/ID", keyring: "_ses.ID", seccomp: new(seccomp.Cache)})
	if err != nil {
		return "", err
	}
	defer pl.program.Close()
	return cloneLine(pl.clone) + pl.program.String(), nil
}
