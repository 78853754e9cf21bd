package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxUserFile bounds /etc/passwd and /etc/group of a container in bytes.
const maxUserFile = 1 << 20

// userFiles are the /etc/passwd and /etc/group of a root file system, which is
// not to be trusted. The zero value, and nil, know nobody.
type userFiles struct {
	passwd, group []byte
	// Why a file could not be read. It matters to who looks a name up only: numbers
	// need no file.
	passwdErr, groupErr error
}

// readUserFiles reads the files below dir as the container will see them: links
// are resolved with dir for root, in images of Nix they are absolute. Missing
// files are empty.
func readUserFiles(dir string) *userFiles {
	u := new(userFiles)
	u.passwd, u.passwdErr = readBounded(dir, "etc/passwd")
	u.group, u.groupErr = readBounded(dir, "etc/group")
	return u
}

func readBounded(dir, name string) ([]byte, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	b, err := sys.ReadInside(root, name, maxUserFile, 0)
	switch err {
	case nil:
		return b, nil
	case unix.ENOENT, unix.ENOTDIR:
		return nil, nil
	}
	return nil, fmt.Errorf("read the container's /%s: %w (a number needs no file)", name, err)
}

// lookup understands USER[:GROUP], each a number or a name. Without a group it
// is the user's own, with the groups that list the user; so it is in docker.
func (u *userFiles) lookup(s string) (specs.User, string, error) {
	if u == nil {
		u = new(userFiles)
	}
	who, group, hasGroup := strings.Cut(s, ":")
	user, name, home, err := u.user(who)
	switch _, notNumber := parseID(who); {
	case err != nil:
	case hasGroup:
		user.GID, err = u.groupID(group)
	case notNumber != nil && u.groupErr != nil:
		err = u.groupErr // who names a user gets all of the user's groups
	default:
		user.AdditionalGids = u.groupsOf(name, user.GID)
	}
	if err != nil {
		return specs.User{}, "", err
	}
	return user, home, nil
}

// user finds a user by name or number: ids, name and home directory. A number
// need not be in the file.
func (u *userFiles) user(who string) (user specs.User, name, home string, err error) {
	entry := find(u.passwd, 7, func(f []string) bool { return f[0] == who || f[2] == who })
	if entry != nil {
		if user.UID, err = parseID(entry[2]); err == nil {
			user.GID, err = parseID(entry[3])
		}
		return user, entry[0], entry[5], err
	}
	user.UID, err = parseID(who)
	switch {
	case err == nil:
	case u.passwdErr != nil:
		err = u.passwdErr
	case len(u.passwd) == 0:
		err = sys.Invalidf("names can only be looked up in a --rootfs that is a directory with an /etc/passwd; give a number")
	default:
		err = sys.Mark(sys.ErrNotFound, errors.New("no such user in the container's /etc/passwd"))
	}
	return user, who, "", err
}

// groupID finds a group by name or number.
func (u *userFiles) groupID(group string) (uint32, error) {
	if g := find(u.group, 3, func(f []string) bool { return f[0] == group }); g != nil {
		group = g[2]
	}
	gid, err := parseID(group)
	switch {
	case err == nil:
	case u.groupErr != nil:
		err = u.groupErr
	default:
		err = sys.Mark(sys.ErrNotFound, errors.New("no such group in the container's /etc/group"))
	}
	return gid, err
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
