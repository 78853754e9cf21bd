package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func TestLookupUser(t *testing.T) {
	files := &userFiles{
		passwd: []byte("root:x:0:0:root:/root:/bin/sh\nbroken\nalice:x:7:8::/home/alice:/bin/sh\nhuge:x:4294967295:1::/:/\n"),
		group:  []byte("root:x:0:\nwheel:x:10:bob,alice\nusers:x:8:alice\nstaff:x:50:alice\n"),
	}
	for in, want := range map[string]struct {
		user specs.User
		home string
	}{
		"root":        {specs.User{}, "/root"},
		"0":           {specs.User{}, "/root"},
		"alice":       {specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{10, 50}}, "/home/alice"},
		"7":           {specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{10, 50}}, "/home/alice"},
		"alice:wheel": {specs.User{UID: 7, GID: 10}, "/home/alice"},
		"alice:99":    {specs.User{UID: 7, GID: 99}, "/home/alice"},
		"1234":        {specs.User{UID: 1234}, ""},
		"1234:5":      {specs.User{UID: 1234, GID: 5}, ""},
	} {
		user, home, err := files.lookup(in)
		require.NoError(t, err, in)
		require.Equal(t, want.user, user, in)
		require.Equal(t, want.home, home, in)
	}
	for _, bad := range []string{"", "bob", "-1", "4294967295", "4294967296", "huge", "alice:", "alice:nobody", "1:-1", "1:4294967295"} {
		user, _, err := files.lookup(bad)
		require.Error(t, err, bad)
		require.Zero(t, user)
	}
	_, _, err := (*userFiles)(nil).lookup("alice")
	require.ErrorIs(t, err, sys.ErrInvalid)
}

// TestUserFilesStayInside makes sure that a hostile root file system cannot have
// this host's files read, or something that never ends.
func TestUserFilesStayInside(t *testing.T) {
	dir := t.TempDir()
	require.Equal(t, &userFiles{}, readUserFiles(dir))

	etc := filepath.Join(dir, "etc")
	passwd := filepath.Join(etc, "passwd")
	require.NoError(t, os.Mkdir(etc, 0o755))
	require.NoError(t, os.Symlink("../../../../../../etc/passwd", passwd))
	u := readUserFiles(dir)
	require.Empty(t, u.passwd)
	require.ErrorIs(t, u.passwdErr, unix.ELOOP) // it is itself
	require.NoError(t, os.Remove(passwd))
	require.NoError(t, os.Symlink("/etc/real", passwd)) // as in images of Nix
	require.Equal(t, &userFiles{}, readUserFiles(dir))
	require.NoError(t, os.WriteFile(filepath.Join(etc, "real"), []byte("a:x:1:1::/:/\n"), 0o644))
	u = readUserFiles(dir)
	require.NoError(t, u.passwdErr)
	require.NotEmpty(t, u.passwd)
	require.NoError(t, os.Truncate(filepath.Join(etc, "real"), maxUserFile+1))
	require.ErrorIs(t, readUserFiles(dir).passwdErr, sys.ErrInvalid)
	require.NoError(t, os.Remove(passwd))
	require.NoError(t, unix.Mkfifo(passwd, 0o644))
	require.ErrorIs(t, readUserFiles(dir).passwdErr, sys.ErrInvalid)
	require.ErrorIs(t, readUserFiles(filepath.Join(dir, "none")).passwdErr, os.ErrNotExist)
}

// TestNumbersNeedNoFile: files that cannot be read matter to names only.
func TestNumbersNeedNoFile(t *testing.T) {
	const passwd = "alice:x:7:8::/home/alice:/bin/sh\n"
	noPasswd := &userFiles{passwdErr: errors.New("unreadable passwd"), groupErr: errors.New("unreadable group")}
	noGroup := &userFiles{passwd: []byte(passwd), groupErr: errors.New("unreadable group")}
	for in, want := range map[string]specs.User{"7": {UID: 7}, "7:8": {UID: 7, GID: 8}} {
		user, _, err := noPasswd.lookup(in)
		require.NoError(t, err, in)
		require.Equal(t, want, user, in)
	}
	for in, want := range map[string]specs.User{"7": {UID: 7, GID: 8}, "alice:9": {UID: 7, GID: 9}} {
		user, home, err := noGroup.lookup(in)
		require.NoError(t, err, in)
		require.Equal(t, want, user, in)
		require.Equal(t, "/home/alice", home)
	}
	for in, files := range map[string]*userFiles{"alice": noPasswd, "alice:8": noPasswd} {
		_, _, err := files.lookup(in)
		require.ErrorIs(t, err, files.passwdErr, in)
	}
	for in, files := range map[string]*userFiles{"7:wheel": noPasswd, "alice:wheel": noGroup, "alice": noGroup} {
		_, _, err := files.lookup(in)
		require.ErrorIs(t, err, files.groupErr, in)
	}
}

// TestImageWithoutUsers: a root file system and a share whose files of users
// cannot be read are packed like any other.
func TestImageWithoutUsers(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := t.TempDir()
	etc := filepath.Join(dir, "etc")
	require.NoError(t, os.Mkdir(etc, 0o755))
	require.NoError(t, os.Symlink("/nix/store/x-base/etc/passwd", filepath.Join(etc, "passwd")))
	require.NoError(t, os.WriteFile(filepath.Join(etc, "group"), make([]byte, maxUserFile+1), 0o644))
	for user, want := range map[string]string{"": "", "1000": "", "alice": "give a number", "1:wheel": "a number needs no file"} {
		w := &workplace{
			options: &runOptions{process: processOptions{args: []string{"x"}, user: user}}, rootfs: dir,
			container: &container{spec: defaultSpec("ns", "c1"), timeline: new(timeline), progress: newProgress()},
		}
		err := w.openRoot(t.Context())
		if want == "" {
			require.NoError(t, err, user)
		} else {
			require.ErrorContains(t, err, want, user)
		}
		w.close()
	}
	shares, err := prepareShares(t.Context(), []string{dir + ":/x:ro"}, "it is a test", newProgress())
	require.NoError(t, err)
	closeShares(shares)
}

func FuzzLookupUser(f *testing.F) {
	f.Add("alice:x:7:8::/home/alice:/bin/sh\n", "wheel:x:10:bob,alice\n", "alice:wheel")
	f.Fuzz(func(t *testing.T, passwd, group, name string) {
		user, home, err := (&userFiles{passwd: []byte(passwd), group: []byte(group)}).lookup(name)
		if err != nil && (user.UID != 0 || user.GID != 0 || home != "") {
			t.Fatalf("%v beside %v", user, err)
		}
		if user.UID == 1<<32-1 || user.GID == 1<<32-1 {
			t.Fatalf("%v", user)
		}
	})
}
