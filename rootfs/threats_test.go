package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Hostile root file systems, one test for each class of known escapes that
// concerns file systems (docs: threat model). After each the guest must be what
// it was.

// canary remembers what of the guest a hostile container could want to change
// and returns the check.
func canary(t *testing.T, outside string) func() {
	look := func() map[string]string {
		seen := map[string]string{"core_pattern": read(t, "/proc/sys/kernel/core_pattern")}
		for _, name := range []string{"/dev/null", "/dev", "/etc/passwd", "/etc", "/"} {
			var st unix.Stat_t
			require.NoError(t, unix.Stat(name, &st))
			seen[name] = fmt.Sprint(st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, st.Rdev)
		}
		infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
			return !isBelow(i.Mountpoint, "/proc") && !isBelow(i.Mountpoint, "/sys") && !isBelow(i.Mountpoint, "/dev") && !isBelow(i.Mountpoint, outside), false
		})
		require.NoError(t, err)
		for _, i := range infos {
			seen["mount "+i.Mountpoint] += i.FSType + " " + i.Options
		}
		require.NoError(t, filepath.Walk(outside, func(name string, st os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			if st.Mode().IsRegular() {
				seen[name] = read(t, name)
			}
			seen[name] += st.Mode().String()
			return nil
		}))
		return seen
	}
	before := look()
	return func() { require.Equal(t, before, look(), "the guest has changed") }
}

// outsideDir is a part of the guest that links of an image lead to.
func outsideDir(t *testing.T) string {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/file", []byte("guest's own\n"), 0o644))
	require.NoError(t, os.Mkdir(dir+"/dir", 0o755))
	return dir
}

// up leads from a container's root to a path of the guest, if ".." did.
func up(name string) string { return strings.Repeat("../", 20) + strings.TrimPrefix(name, "/") }

func link(t *testing.T, target, name string) {
	require.NoError(t, os.RemoveAll(name))
	require.NoError(t, os.Symlink(target, name))
}

// TestLongOptionsOnLinks: an option that fsconfig(2) does not take does not open
// another way for CVE-2019-19921.
func TestLongOptionsOnLinks(t *testing.T) {
	requireRoot(t)
	root := busyboxRoot(t)
	s := defaultSpec(root)
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/proc" })
	s.Mounts[i].Options = []string{"gid=" + strings.Repeat("0", 300) + "5", "rnosuid"}
	out, err := run(t, s, showMounts("/proc"))
	require.NoError(t, err)
	require.Contains(t, out, "gid=5")
	link(t, "tmp", root+"/proc")
	_, err = run(t, s, "true")
	require.ErrorIs(t, err, unix.ELOOP)
}

// TestKernelFileSystemsOnLinks: CVE-2019-16884, CVE-2019-19921, CVE-2023-27561,
// CVE-2023-28642. What confines the container must not end up elsewhere.
func TestKernelFileSystemsOnLinks(t *testing.T) {
	requireRoot(t)
	outside := outsideDir(t)
	check := canary(t, outside)
	for name, prepare := range map[string]func(root string){
		"proc inside":         func(root string) { link(t, "tmp", root+"/proc") },
		"proc outside":        func(root string) { link(t, up(outside), root+"/proc") },
		"proc is the guest's": func(root string) { link(t, "/proc", root+"/proc") },
		"proc dangles":        func(root string) { link(t, "/nosuch", root+"/proc") },
		"proc is a file": func(root string) {
			link(t, "x", root+"/proc")
			require.NoError(t, os.Remove(root+"/proc"))
			require.NoError(t, os.WriteFile(root+"/proc", nil, 0o644))
		},
		"sys inside":  func(root string) { link(t, "/tmp", root+"/sys") },
		"sys is proc": func(root string) { link(t, "proc", root+"/sys") },
		"sys outside": func(root string) { link(t, up("/sys"), root+"/sys") },
	} {
		t.Run(name, func(t *testing.T) {
			root := busyboxRoot(t)
			prepare(root)
			for _, f := range []func(testing.TB, *specs.Spec, string) (string, error){run, runUserNS} {
				_, err := f(t, defaultSpec(root), "true")
				require.Error(t, err)
				require.Regexp(t, `mount (proc|sysfs) on /(proc|sys): (too many levels of symbolic links|not a directory)`, err.Error())
			}
			check()
		})
	}
}

// TestDevOnLinks: CVE-2026-41579. /dev of the image leads somewhere else.
func TestDevOnLinks(t *testing.T) {
	requireRoot(t)
	outside := outsideDir(t)
	check := canary(t, outside)
	for _, target := range []string{up(outside), outside, up("/dev"), "/tmp", "/nosuch/dev", "/proc/self/root/dev", "/etc/../bin"} {
		for _, mounted := range []bool{true, false} {
			t.Run(fmt.Sprint(target, mounted), func(t *testing.T) {
				root := busyboxRoot(t)
				link(t, target, root+"/dev")
				s := defaultSpec(root)
				if !mounted {
					s.Mounts = s.Mounts[:1]
				}
				out, err := run(t, s, "ls -l /dev/null; echo x > /dev/null; ls /dev/")
				if err == nil {
					require.Contains(t, out, "1,   3")
				}
				check()
			})
		}
	}
}

// TestDestinationSwapped: CVE-2021-30465, CVE-2024-45310. A directory of the
// image turns into a link and back while containers are made of it, as another
// container that shares it can do.
func TestDestinationSwapped(t *testing.T) {
	requireRoot(t)
	outside := outsideDir(t)
	check := canary(t, outside)
	root := busyboxRoot(t)
	volume := t.TempDir()
	require.NoError(t, os.MkdirAll(root+"/swap/dir", 0o755))
	link(t, up(outside), root+"/link")
	require.NoError(t, os.MkdirAll(root+"/parked/deep", 0o755))
	stop, stopped := make(chan struct{}), make(chan struct{})
	swaps := 0
	go func() {
		defer close(stopped)
		for ; ; swaps++ {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, root+"/swap", unix.AT_FDCWD, root+"/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	s := defaultSpec(root)
	s.Mounts = append(s.Mounts[:1], mount("/swap", "tmpfs", "", ""), mount("/swap/dir/new/deeper", "", volume, "bind"), mount("/link/file", "", outside+"/file", "bind ro"),
		mount("/link/dir/x", "tmpfs", "", "tmpcopyup"))
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/swap/dir/node", Type: "p"}, {Path: "/link/dir/node", Type: "c", Major: 1, Minor: 3}}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/swap/dir", "/link/file"}, []string{"/link/dir", "/swap"}
	made, failed := 0, map[string]int{}
	creates := 300
	if testing.Short() {
		creates = 30
	}
	for range creates {
		if _, err := run(t, s, "true"); err == nil {
			made++
		} else {
			failed[err.Error()]++
		}
	}
	close(stop)
	<-stopped
	t.Logf("%d swaps, %d containers made, %d reasons why others were not", swaps, made, len(failed))
	check()
	require.NotZero(t, swaps)
	for text := range failed { // refused by name, not broken
		require.Regexp(t, `^(mount|make|mask|find) `, text)
	}
}

// TestMasksOfHostileImages: CVE-2025-31133. The image brings its own /dev/null,
// or what is masked is a link.
func TestMasksOfHostileImages(t *testing.T) {
	requireRoot(t)
	outside := outsideDir(t)
	check := canary(t, outside)
	for name, target := range map[string]string{"link to core_pattern": "/proc/sys/kernel/core_pattern", "link outside": up(outside + "/file"), "link to the guest's": up("/dev/null")} {
		t.Run(name, func(t *testing.T) {
			root := busyboxRoot(t)
			link(t, target, root+"/dev/null")
			s := defaultSpec(root)
			s.Mounts = append(s.Mounts[:1], s.Mounts[5]) // no /dev: the image's is used
			_, err := run(t, s, "true")
			require.ErrorContains(t, err, "make device /dev/null: something else is there already")
			check()

			s.Mounts = append(s.Mounts, mount("/dev", "", root+"/dev", "bind")) // the config says that the image's /dev is to stay
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/proc/sys/kernel/core_pattern", "/etc/masked", "/etc/link", "/etc/magic")
			require.NoError(t, os.WriteFile(root+"/etc/masked", []byte("secret"), 0o644))
			link(t, "masked", root+"/etc/link")
			link(t, "/proc/self/exe", root+"/etc/magic")
			out, err := run(t, s, "cat /etc/masked /etc/link /proc/sys/kernel/core_pattern; stat -c '%t:%T' /proc/keys /etc/masked")
			if err != nil { // a magic link is refused
				require.ErrorContains(t, err, "mask /etc/magic: too many levels of symbolic links")
				s.Linux.MaskedPaths = s.Linux.MaskedPaths[:len(s.Linux.MaskedPaths)-1]
				out, err = run(t, s, "cat /etc/masked /etc/link /proc/sys/kernel/core_pattern; stat -c '%t:%T' /proc/keys /etc/masked")
			}
			require.NoError(t, err)
			require.Equal(t, "1:3\n1:3", out)
			check()
		})
	}
}

// TestMasksHold: what is masked or read-only stays so for root of the container.
func TestMasksHold(t *testing.T) {
	requireRoot(t)
	s := defaultSpec(busyboxRoot(t, "umount", "mkdir", "rm"))
	out, err := run(t, s, `for f in /proc/sys/kernel/hostname /proc/sysrq-trigger; do echo x > $f; done 2>&1; cat /proc/keys /proc/kcore /proc/timer_list; ls /proc/scsi /sys/firmware
umount /proc/kcore 2>&1 | head -1; mount -o remount,rw /proc/sys 2>&1; mkdir /sys/firmware/x 2>&1; echo escaped > /proc/keys && cat /proc/keys`)
	require.NoError(t, err)
	require.NotContains(t, out, "escaped")
	require.Contains(t, out, "can't create /proc/sys/kernel/hostname: Read-only file system")
}

// TestMaskIsNotTheGuests: a masked file is the guest's own /dev/null, whose mode
// and owner no container may change. (What is asked for is what it has already:
// nothing happens if it works.)
func TestMaskIsNotTheGuests(t *testing.T) {
	requireRoot(t)
	s := defaultSpec(busyboxRoot(t, "chmod", "chown"))
	s.Linux.MaskedPaths = []string{"/proc/version"}
	out, err := run(t, s, "chmod 666 /proc/version 2>&1; chown 0:0 /proc/version 2>&1; echo x > /proc/version && cat /proc/version && echo still null")
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(out, "Read-only file system"), out)
	require.Contains(t, out, "still null")
}

// TestTerminalOfHostileImages: CVE-2025-52565. /dev/console and /dev/pts of the
// image are links.
func TestTerminalOfHostileImages(t *testing.T) {
	requireRoot(t)
	outside := outsideDir(t)
	check := canary(t, outside)
	for name, prepare := range map[string]func(root string, s *specs.Spec){
		"console link": func(root string, s *specs.Spec) { link(t, up(outside+"/file"), root+"/dev/console") },
		"console to core_pattern": func(root string, s *specs.Spec) {
			link(t, "/proc/sys/kernel/core_pattern", root+"/dev/console")
		},
		"console directory": func(root string, s *specs.Spec) { require.NoError(t, os.Mkdir(root+"/dev/console", 0o755)) },
		"pts link": func(root string, s *specs.Spec) {
			link(t, up("/dev/pts"), root+"/dev/pts")
			s.Mounts = s.Mounts[:1]
		},
		"pts is no devpts": func(root string, s *specs.Spec) {
			require.NoError(t, os.Mkdir(root+"/dev/pts", 0o755))
			require.NoError(t, os.WriteFile(root+"/dev/pts/ptmx", nil, 0o666))
			s.Mounts = s.Mounts[:1]
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := busyboxRoot(t, "tty")
			s := defaultSpec(root)
			s.Mounts = append(s.Mounts[:1:1], s.Mounts[2], s.Mounts[5])
			prepare(root, s)
			s.Process = &specs.Process{Terminal: true}
			_, err := box{script: "echo hello > /dev/console", terminal: true}.run(t, s)
			if err == nil {
				require.Contains(t, name, "console")
			}
			check()
		})
	}
}

// TestNothingLeaksIn: no fd of the daemon, nor of the work on mounts, is open
// in the container, and no mount of the guest is seen.
func TestNothingLeaksIn(t *testing.T) {
	requireRoot(t)
	root := busyboxRoot(t)
	require.NoError(t, os.Mkdir(root+"/run", 0o755))
	s := defaultSpec(root)
	s.Linux.RootfsPropagation = "rshared"
	s.Mounts[1].Options = append(s.Mounts[1].Options, "ro")
	s.Mounts = append(s.Mounts, mount("/run", "tmpfs", "", "tmpcopyup ro"), mount("/vol", "", ext4(t), "rbind idmap"))
	s.Mounts[len(s.Mounts)-1].UIDMappings, s.Mounts[len(s.Mounts)-1].GIDMappings = ids(0, 1, 1), ids(0, 1, 1)
	script := `ls /proc/self/fd; while read -r id parent dev r where rest; do echo $where; done < /proc/self/mountinfo`
	out, err := run(t, s, script)
	require.NoError(t, err)
	lines := strings.Fields(out)
	require.Equal(t, []string{"0", "1", "2", "3", "/"}, lines[:5], "3 is the directory being listed")
	for _, where := range lines[4:] {
		require.Regexp(t, `^/($|proc|dev|sys|run|vol)`, where)
	}
	require.Equal(t, 1, strings.Count(" "+oneLine(out)+" ", " / "), "the guest's root is gone")
}
