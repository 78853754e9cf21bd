package rootfs

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// mountOptions are the options of one mount of the spec, sorted by what the
// kernel wants to be told how (runtime-spec config.md, "Linux mount options").
type mountOptions struct {
	set, clr    uint64 // MOUNT_ATTR_* of the mount itself
	rset, rclr  uint64 // the same for all mounts below it (rro, rnosuid, ...)
	propagation []uint64
	bind, rec   bool
	remount     bool
	tmpcopyup   bool
	idmap       bool
	ridmap      bool     // with all mounts below
	super       []string // flags of the superblock (ro, sync, ...)
	data        []string // what only the file system understands
}

type attrOption struct{ set, clr uint64 }

// attrOptions change one mount; with an "r" in front, all below it too.
var attrOptions = map[string]attrOption{
	"ro": {unix.MOUNT_ATTR_RDONLY, 0}, "rw": {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, 0}, "suid": {0, unix.MOUNT_ATTR_NOSUID},
	"nodev": {unix.MOUNT_ATTR_NODEV, 0}, "dev": {0, unix.MOUNT_ATTR_NODEV},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, 0}, "exec": {0, unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, 0}, "diratime": {0, unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, 0}, "symfollow": {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
	"noatime": {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME}, "atime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME}, "nostrictatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	// relatime is what the kernel does unless told otherwise, so also without it.
	"relatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME}, "norelatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	// mount(8): these imply others, unless later options say otherwise.
	"user": {implied | unix.MOUNT_ATTR_NOEXEC, 0}, "users": {implied | unix.MOUNT_ATTR_NOEXEC, 0}, "owner": {implied, 0}, "group": {implied, 0},
}

const implied = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

var propagationOptions = map[string]uint64{
	"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE,
	"rprivate": unix.MS_PRIVATE | unix.MS_REC, "rslave": unix.MS_SLAVE | unix.MS_REC, "rshared": unix.MS_SHARED | unix.MS_REC, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// superOptions are flags every superblock knows (fs/fs_context.c).
var superOptions = []string{"sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"}

// ignoredOptions say nothing to a kernel of today, or are for mount(8) alone.
var ignoredOptions = []string{"defaults", "silent", "loud", "iversion", "noiversion", "auto", "noauto", "nofail", "_netdev", "nouser", "nousers", "noowner", "nogroup"}

func ignored(opt string) bool {
	return slices.Contains(ignoredOptions, opt) || strings.HasPrefix(opt, "x-") || strings.HasPrefix(opt, "X-") || strings.HasPrefix(opt, "comment=")
}

func parseOptions(options []string) (mountOptions, error) {
	var o mountOptions
	for _, opt := range options {
		if a, ok := attrOptions[opt]; ok {
			o.set, o.clr = o.set&^a.clr|a.set, o.clr&^a.set|a.clr
			if opt == "ro" || opt == "rw" {
				o.super = append(slices.DeleteFunc(o.super, func(s string) bool { return s == "ro" || s == "rw" }), opt)
			}
			continue
		}
		if a, ok := recursiveOption(opt); ok {
			o.rset, o.rclr = o.rset&^a.clr|a.set, o.rclr&^a.set|a.clr
			continue
		}
		if f, ok := propagationOptions[opt]; ok {
			o.propagation = append(o.propagation, f)
			continue
		}
		switch {
		case opt == "bind":
			o.bind = true
		case opt == "rbind":
			o.bind, o.rec = true, true
		case opt == "remount":
			o.remount = true
		case opt == "tmpcopyup":
			o.tmpcopyup = true
		case opt == "idmap" || opt == "ridmap":
			o.idmap, o.ridmap = true, opt == "ridmap"
		case slices.Contains(superOptions, opt):
			o.super = append(o.super, opt)
		case ignored(opt):
		case opt == "" || strings.ContainsAny(opt, "\x00\n"):
			return o, sys.Invalidf("option %q", opt)
		default:
			o.data = append(o.data, splitData(opt)...)
		}
	}
	return o, nil
}

// splitData takes an option apart that is several, as mount(2) would: at
// commas, but not inside quotes (SELinux contexts) or after a backslash
// (overlay). The quotes go, fsconfig(2) wants none.
func splitData(opt string) []string {
	var parts []string
	var part strings.Builder
	quoted, escaped := false, false
	for _, r := range []byte(opt) {
		switch {
		case r == '"' && !escaped:
			quoted = !quoted
			continue
		case r == ',' && !quoted && !escaped:
			parts = append(parts, part.String())
			part.Reset()
			continue
		}
		escaped = r == '\\' && !escaped
		part.WriteByte(r)
	}
	return slices.DeleteFunc(append(parts, part.String()), func(s string) bool { return s == "" })
}

// recursiveOption: "rnosuid" and so on.
func recursiveOption(opt string) (attrOption, bool) {
	short, ok := strings.CutPrefix(opt, "r")
	a, known := attrOptions[short]
	return a, ok && known && a.set&implied != implied
}
