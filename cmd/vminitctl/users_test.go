package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

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
	u, err := readUserFiles(dir)
	require.NoError(t, err)
	require.Empty(t, u.passwd)

	etc := filepath.Join(dir, "etc")
	require.NoError(t, os.Mkdir(etc, 0o755))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(etc, "passwd")))
	_, err = readUserFiles(dir)
	require.Error(t, err)
	require.NoError(t, os.Remove(filepath.Join(etc, "passwd")))
	require.NoError(t, os.Symlink("real", filepath.Join(etc, "passwd")))
	require.NoError(t, os.WriteFile(filepath.Join(etc, "real"), []byte("a:x:1:1::/:/\n"), 0o644))
	u, err = readUserFiles(dir)
	require.NoError(t, err)
	require.NotEmpty(t, u.passwd)
	require.NoError(t, os.Truncate(filepath.Join(etc, "real"), maxUserFile+1))
	_, err = readUserFiles(dir)
	require.ErrorIs(t, err, sys.ErrInvalid)
}

func FuzzLookupUser(f *testing.F) {
	f.Add("alice:x:7:8::/home/alice:/bin/sh\n", "wheel:x:10:bob,alice\n", "alice:wheel")
	f.Fuzz(func(t *testing.T, passwd, group, name string) {
		user, home, err := (&userFiles{[]byte(passwd), []byte(group)}).lookup(name)
		if err != nil && (user.UID != 0 || user.GID != 0 || home != "") {
			t.Fatalf("%v beside %v", user, err)
		}
		if user.UID == 1<<32-1 || user.GID == 1<<32-1 {
			t.Fatalf("%v", user)
		}
	})
}
