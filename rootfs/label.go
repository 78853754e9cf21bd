package rootfs

import (
	"os"
	"slices"
	"strings"

	"vminit/internal/sys"
)

// label returns the file system's options with the SELinux context of
// linux.mountLabel, where the file system takes one: not those that all
// containers share.
func (c *Compiler) label(fstype string, e *entry) []string {
	if c.linux.MountLabel == "" || sharedSuper(fstype) || e.has("context") {
		return e.data
	}
	if !c.opt.SELinux() {
		c.p.Fail(sys.Unsupportedf("linux.mountLabel %q: SELinux is not enabled in this kernel", c.linux.MountLabel))
	}
	return append(slices.Clone(e.data), "context="+c.linux.MountLabel)
}

// has reports whether the file system's options have a key.
func (o *mountOptions) has(key string) bool {
	return slices.ContainsFunc(o.data, func(s string) bool {
		k, _, _ := strings.Cut(s, "=")
		return k == key
	})
}

// selinuxEnabled: the kernel registers selinuxfs only when SELinux is on.
func selinuxEnabled() bool {
	data, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(data), "\tselinuxfs\n")
}
