package cgroup2

import (
	"strings"

	"vminit/internal/sys"
)

const (
	maxPath  = 1024 // bytes; the kernel prints paths into buffers of 4096
	maxDepth = 32   // components
)

// splitPath checks a cgroupsPath of the runtime specification and returns its
// components. A leading slash means the same as none: the path is always taken
// relative to the container subtree.
//
// The form "slice:prefix:name" that a systemd cgroup driver passes is taken as
// it stands, as one plain directory name: there is no systemd here to own a
// hierarchy of slices. crun's cgroupfs manager does the same.
//
// Paths that are empty, too long, or have an empty, "." or ".." component or a
// control character are refused with [sys.ErrInvalid].
func splitPath(p string) ([]string, error) {
	rel := strings.TrimPrefix(p, "/")
	switch {
	case rel == "":
		return nil, sys.Invalidf("cgroupsPath %q names no cgroup", p)
	case len(p) > maxPath:
		return nil, sys.Invalidf("cgroupsPath has %d bytes, more than %d", len(p), maxPath)
	}
	parts := strings.Split(rel, "/")
	if len(parts) > maxDepth {
		return nil, sys.Invalidf("cgroupsPath has %d components, more than %d", len(parts), maxDepth)
	}
	for _, part := range parts {
		if err := checkName(part); err != nil {
			return nil, sys.Invalidf("cgroupsPath %q: %w", p, err)
		}
	}
	return parts, nil
}

// checkName checks one path component.
func checkName(name string) error {
	switch {
	case name == "":
		return sys.Invalidf("empty path component")
	case name == "." || name == "..":
		return sys.Invalidf("path component %q is not allowed", name)
	case len(name) > 255: // NAME_MAX
		return sys.Invalidf("path component of %d bytes, more than 255", len(name))
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return sys.Invalidf("path component %q has a control character", name)
	}
	return nil
}
