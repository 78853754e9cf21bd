package tasksvc

import (
	"vminit/internal/sys"
)

const (
	maxIDLength   = 76  // containerd, pkg/identifiers
	maxNameLength = 255 // NAME_MAX, linux/limits.h
)

// validateID checks the id of a container, an exec or a namespace by the rule
// of containerd's pkg/identifiers: runs of ASCII letters and digits with
// single '-', '_' or '.' between them, at most 76 bytes. Such an id is safe as
// a file name, in a cgroup path and in a log line. The error is ErrInvalid.
func validateID(kind, id string) error {
	if id == "" {
		return sys.Invalidf("%s id is empty", kind)
	}
	if len(id) > maxIDLength {
		return sys.Invalidf("%s id %.16q... has %d bytes; at most %d are allowed", kind, id, len(id), maxIDLength)
	}
	separated := true // as if the id were preceded by a separator
	for i := range len(id) {
		c := id[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (separated || c != '-' && c != '_' && c != '.') {
			return sys.Invalidf("%s id %q: only letters and digits with single '-', '_' or '.' between them are allowed", kind, id)
		}
		separated = !alnum
	}
	if separated {
		return sys.Invalidf("%s id %q ends with a separator", kind, id)
	}
	return nil
}

// validateName checks that name is a simple file name: one component that
// stays in the directory it is used in and prints on one line. It is wider
// than validateID, because hosts choose the names of a bundle's files. The
// error is ErrInvalid.
func validateName(kind, name string) error {
	if name == "" || name == "." || name == ".." {
		return sys.Invalidf("%s %q is not a file name", kind, name)
	}
	if len(name) > maxNameLength {
		return sys.Invalidf("%s %.16q... has %d bytes; at most %d are allowed", kind, name, len(name), maxNameLength)
	}
	for i := range len(name) {
		if c := name[i]; c < ' ' || c == 0x7f || c == '/' || c == '\\' {
			return sys.Invalidf("%s %q must not contain %q", kind, name, c)
		}
	}
	return nil
}
