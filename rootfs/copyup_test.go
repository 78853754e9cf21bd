package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// copyUpTree fills a directory with one of everything.
func copyUpTree(t *testing.T, dir string, uid int) {
	require.NoError(t, os.MkdirAll(dir+"/sub/deep", 0o755))
	require.NoError(t, os.WriteFile(dir+"/file", []byte("hello\n"), 0o644))
	require.NoError(t, os.WriteFile(dir+"/sub/secret", []byte("secret\n"), 0o600))
	require.NoError(t, os.Link(dir+"/file", dir+"/sub/hard"))
	require.NoError(t, os.Symlink("/etc/passwd", dir+"/link"))
	require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o640))
	sparse, err := os.Create(dir + "/sparse")
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte("end\n"), 1<<30)
	require.NoError(t, err)
	require.NoError(t, sparse.Close())
	require.NoError(t, filepath.Walk(dir, func(name string, _ os.FileInfo, err error) error {
		require.NoError(t, err)
		return os.Lchown(name, uid, uid)
	}))
	require.NoError(t, os.Lchown(dir+"/sub/secret", uid+7, uid+8))
	require.NoError(t, os.Chmod(dir+"/file", os.ModeSetuid|0o755)) // after chown
	require.NoError(t, os.Chmod(dir+"/sub", os.ModeSticky|0o770))
	require.NoError(t, os.Chtimes(dir+"/file", time.Unix(1e9, 0), time.Unix(1e9, 0)))
	require.NoError(t, unix.Setxattr(dir+"/file", "trusted.test", []byte("value"), 0))
	require.NoError(t, os.Chmod(dir, 0o751))
}

const showTree = `cd /data; stat -c '%n %A %u:%g %h %s' . file fifo link sub sub/deep sub/hard sub/secret sparse; stat -c %Y file; readlink link; cat file; tail -c 4 sparse`

const wantTree = `. drwxr-x--x 0:0 3 140 -
file -rwsr-xr-x 0:0 2 6 -
fifo prw-r----- 0:0 1 0 -
link lrwxrwxrwx 0:0 1 11 -
sub drwxrwx--T 0:0 3 100 -
sub/deep drwxr-xr-x 0:0 2 40 -
sub/hard -rwsr-xr-x 0:0 2 6 -
sub/secret -rw------- 7:8 1 7 -
sparse -rw-r--r-- 0:0 1 1073741828 -
1000000000
/etc/passwd
hello
end`

func copyUpSpec(t *testing.T) (*specs.Spec, string) {
	root := busyboxRoot(t, "tail", "rm")
	s := defaultSpec(root)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "tmpfs", Options: []string{"tmpcopyup", "size=8m"}})
	return s, root + "/data"
}

func TestCopyUp(t *testing.T) {
	requireRoot(t)
	for name, uid := range map[string]int{"plain": 0, "user namespace": 100000} {
		t.Run(name, func(t *testing.T) {
			s, data := copyUpSpec(t)
			copyUpTree(t, data, uid)
			f := run
			if uid != 0 {
				f = runUserNS
			}
			out, err := f(t, s, showTree+`; echo changed > file; rm -r sub && echo removed`)
			require.NoError(t, err)
			require.Equal(t, strings.ReplaceAll(wantTree, " -\n", "\n")+"\nremoved", out)
			old, err := os.ReadFile(data + "/file")
			require.NoError(t, err)
			require.Equal(t, "hello\n", string(old), "the image stays")
			var st unix.Stat_t
			require.NoError(t, unix.Stat("/proc/self", &st), "and so does the test")
			require.Zero(t, st.Uid)
		})
	}
}

func TestCopyUpAttributes(t *testing.T) {
	requireRoot(t)
	src, dst := t.TempDir(), t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dst, "tmpfs", 0, ""))
	defer unix.Unmount(dst, unix.MNT_DETACH)
	copyUpTree(t, src, 0)
	require.NoError(t, copyDirs(t, src, dst, ownerAndMode{}))
	value := make([]byte, 16)
	n, err := unix.Getxattr(dst+"/file", "trusted.test", value)
	require.NoError(t, err)
	require.Equal(t, "value", string(value[:n]))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(dst+"/sparse", &st))
	require.LessOrEqual(t, st.Blocks, int64(16), "holes stay holes")
}

func copyDirs(t *testing.T, src, dst string, keep ownerAndMode) error {
	fds := [2]int{}
	for i, dir := range []string{src, dst} {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		fds[i] = fd
	}
	c := &copier{deadline: soon(), links: map[inode]string{}}
	return c.copyRoot(fds[0], fds[1], keep)
}

func TestCopyUpOptionsWin(t *testing.T) {
	s, data := copyUpSpec(t)
	require.NoError(t, os.MkdirAll(data, 0o700))
	m := &s.Mounts[len(s.Mounts)-1]
	m.Options = append(m.Options, "mode=1770", "uid=3", "gid=4", "ro", "nosuid")
	out, err := run(t, s, `stat -c '%A %u:%g' /data; while read a b c d m o r; do case $m in /data) echo $o;; esac; done < /proc/self/mountinfo`)
	require.NoError(t, err)
	require.Equal(t, "drwxrwx--T 3:4\nro,nosuid,relatime", out)
}

func TestCopyUpErrors(t *testing.T) {
	requireRoot(t)
	for _, tc := range []struct {
		name, want string
		prepare    func(t *testing.T, data string)
	}{
		{"too small", "/data: tmpcopyup: big: the tmpfs is too small, make its size or nr_inodes larger: write big: no space left on device", func(t *testing.T, data string) {
			require.NoError(t, os.WriteFile(data+"/big", make([]byte, 9<<20), 0o644))
		}},
		{"too deep", "more than 200 directories deep", func(t *testing.T, data string) {
			require.NoError(t, os.MkdirAll(data+strings.Repeat("/d", 210), 0o755))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, data := copyUpSpec(t)
			require.NoError(t, os.Mkdir(data, 0o755))
			tc.prepare(t, data)
			_, err := run(t, s, "true")
			require.ErrorContains(t, err, tc.want)
		})
	}
}

// TestCopyUpKeepsSecrets: what a container's root may not read, because its
// owner is nobody of the user namespace, stays so in the copy.
func TestCopyUpKeepsSecrets(t *testing.T) {
	requireRoot(t)
	s, data := copyUpSpec(t)
	require.NoError(t, os.Mkdir(data, 0o755))
	require.NoError(t, os.WriteFile(data+"/secret", []byte("secret"), 0o600))
	out, err := runUserNS(t, s, "cat /data/secret 2>&1")
	if err != nil { // kernels differ
		require.ErrorContains(t, err, "are 0 and 0, its owner and group, mapped")
		return
	}
	require.Equal(t, "cat: can't open '/data/secret': Permission denied", out)
}

// TestCopyUpWhileSwapped copies a directory in which files, directories and
// links change places all the time: nothing of the outside may get in.
func TestCopyUpWhileSwapped(t *testing.T) {
	requireRoot(t)
	base := t.TempDir()
	outside, src := base+"/outside", base+"/src"
	require.NoError(t, os.MkdirAll(outside+"/a", 0o755))
	require.NoError(t, os.WriteFile(outside+"/a/secret", []byte("x"), 0o644))
	require.NoError(t, os.Mkdir(src, 0o755))
	for i := range 20 {
		require.NoError(t, os.MkdirAll(fmt.Sprintf("%s/d%d/a", src, i), 0o755))
		require.NoError(t, os.Symlink(outside, fmt.Sprintf("%s/l%d", src, i)))
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i = (i + 1) % 20 {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, fmt.Sprintf("%s/d%d", src, i), unix.AT_FDCWD, fmt.Sprintf("%s/l%d", src, i), unix.RENAME_EXCHANGE)
			}
		}
	}()
	for range 15 {
		dst := t.TempDir()
		require.NoError(t, copyDirs(t, src, dst, ownerAndMode{}))
		require.NoError(t, filepath.WalkDir(dst, func(name string, _ os.DirEntry, err error) error {
			require.NotEqual(t, "secret", filepath.Base(name))
			return err
		}))
	}
	close(stop)
	<-stopped
}
