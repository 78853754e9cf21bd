package rootfs

import (
	"maps"
	"slices"
)

// MountOptions returns all mount options that are understood, sorted: those of
// the spec's table and what mount(8) has beside. Whatever else a mount names is
// for its file system.
func MountOptions() []string {
	names := []string{"bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"}
	for name := range attrOptions {
		names = append(names, name)
		if _, ok := recursiveOption("r" + name); ok {
			names = append(names, "r"+name)
		}
	}
	names = slices.AppendSeq(names, maps.Keys(propagationOptions))
	names = append(append(names, superOptions...), ignoredOptions...)
	slices.Sort(names)
	return names
}
