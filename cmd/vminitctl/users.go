package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// maxUserFile bounds /etc/passwd and /etc/group of a container in bytes.
const maxUserFile = 1 << 20

// userFiles are the /etc/passwd and /etc/group of a root file system, which is
// not to be trusted. The zero value, and nil, know nobody.
type userFiles struct {
	passwd, group []byte
}

// readUserFiles reads the files below dir without leaving dir. Missing ones are
// empty.
func readUserFiles(dir string) (*userFiles, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u := new(userFiles)
	if u.passwd, err = readBounded(root, "etc/passwd"); err != nil {
		return nil, err
	}
	if u.group, err = readBounded(root, "etc/group"); err != nil {
		return nil, err
	}
	return u, nil
}

func readBounded(root *os.Root, name string) ([]byte, error) {
	fi, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxUserFile {
		return nil, sys.Invalidf("%s/%s is not a regular file of at most %d bytes", root.Name(), name, maxUserFile)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxUserFile))
}

// lookup understands USER[:GROUP], each a number or a name. Without a group it
// is the user's own, with the groups that list the user; so it is in docker.
func (u *userFiles) lookup(s string) (user specs.User, home string, err error) {
	if u == nil {
		u = new(userFiles)
	}
	name, group, hasGroup := strings.Cut(s, ":")
	entry := find(u.passwd, 7, func(f []string) bool { return f[0] == name || f[2] == name })
	if entry != nil {
		name, home = entry[0], entry[5]
		if user.UID, err = parseID(entry[2]); err == nil {
			user.GID, err = parseID(entry[3])
		}
	} else if user.UID, err = parseID(name); err != nil && len(u.passwd) == 0 {
		err = sys.Invalidf("names can only be looked up in a --rootfs that is a directory; give a number")
	} else if err != nil {
		err = sys.Mark(sys.ErrNotFound, errors.New("no such user in the container's /etc/passwd"))
	}
	if err != nil {
		return specs.User{}, "", err
	}
	if !hasGroup {
		user.AdditionalGids = u.groupsOf(name, user.GID)
		return user, home, nil
	}
	if g := find(u.group, 3, func(f []string) bool { return f[0] == group }); g != nil {
		group = g[2]
	}
	if user.GID, err = parseID(group); err != nil {
		return specs.User{}, "", sys.Mark(sys.ErrNotFound, errors.New("no such group in the container's /etc/group"))
	}
	return user, home, nil
}

// groupsOf returns the groups beside the primary one that list a user.
func (u *userFiles) groupsOf(name string, primary uint32) []uint32 {
	var gids []uint32
	find(u.group, 4, func(f []string) bool {
		if slices.Contains(strings.Split(f[3], ","), name) {
			if gid, err := parseID(f[2]); err == nil && gid != primary && !slices.Contains(gids, gid) {
				gids = append(gids, gid)
			}
		}
		return false
	})
	return gids
}

// find returns the first line of at least n fields that is wanted.
func find(file []byte, n int, wanted func(fields []string) bool) []string {
	s := bufio.NewScanner(bytes.NewReader(file))
	s.Buffer(nil, maxUserFile)
	for s.Scan() {
		if f := strings.Split(s.Text(), ":"); len(f) >= n && wanted(f) {
			return f
		}
	}
	return nil
}

// parseID reads a user or group id. 2^32-1 is none: it means "leave as it is"
// (setresuid(2)).
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, sys.Invalidf("%q is no user or group id", s)
	}
	return uint32(n), nil
}
