package kcheck

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// patience bounds what a child may take; it needs some microseconds.
const patience = 10 * time.Second

// env is what probes share. All of it is gone after close.
type env struct {
	launcher *nsexec.Launcher
	release  string // of the kernel
	filtered bool   // a seccomp filter is on us
	scratch  string // an empty directory with the subdirectories a, b and c

	cgroup    string // one of our own, "" if there is none
	cgroupErr error  // why
	userns    int    // fd of a user namespace with ids mapped, -1 if there is none
	usernsErr error  // why
}

func newEnv(l *nsexec.Launcher) (*env, error) {
	e := &env{launcher: l, userns: -1}
	var err error
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, os.NewSyscallError("uname", err)
	}
	e.release = unix.ByteSliceToString(u.Release[:])
	status, _ := os.ReadFile("/proc/self/status")
	e.filtered = strings.Contains(string(status), "\nSeccomp:\t2")
	if e.scratch, err = os.MkdirTemp("", "vminit-check-"); err != nil {
		return nil, fmt.Errorf("a directory for probes: %w", err)
	}
	for _, d := range []string{"a", "b", "c"} {
		if err := os.Mkdir(filepath.Join(e.scratch, d), 0o755); err != nil {
			e.close()
			return nil, err
		}
	}
	e.cgroup, e.cgroupErr = makeCgroup()
	e.userns, e.usernsErr = e.mapIDs()
	return e, nil
}

func (e *env) close() {
	if e.userns >= 0 {
		unix.Close(e.userns)
	}
	if e.cgroup != "" {
		_ = os.Remove(e.cgroup)
	}
	_ = os.RemoveAll(e.scratch)
}

func (e *env) dir(name string) string { return filepath.Join(e.scratch, name) }

// makeCgroup makes a cgroup beside all others, or says why not.
func makeCgroup() (string, error) {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(mount, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir := filepath.Join(mount, fmt.Sprintf("vminit-check-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", fmt.Errorf("make a cgroup in %s: %w", mount, plain(err))
		}
		return dir, nil
	}
	return "", notHere(nil, "no cgroup2 at /sys/fs/cgroup")
}

// child runs instructions in a child with new namespaces, and returns what the
// first that failed says.
func (e *env) child(namespaces uint64, build func(*nsexec.Program)) error {
	return e.run(nsexec.Launch{Namespaces: namespaces, Cgroup: -1, PIDNS: -1}, build, nil)
}

// run is child for any launch. Where the program has a gate, at runs while the
// child waits there.
func (e *env) run(x nsexec.Launch, build func(*nsexec.Program), at func(*nsexec.Child, *nsexec.Registers) error) error {
	p, err := nsexec.NewProgram()
	if err != nil {
		return err
	}
	defer p.Close()
	build(p)
	p.Step("exit")
	p.Call(unix.SYS_EXIT_GROUP, nsexec.Int(0))
	x.Program = p
	c, err := e.launcher.Start(x)
	if err != nil {
		return err
	}
	defer end(c)
	deadline := time.Now().Add(patience)
	if at != nil {
		regs, err := c.AwaitGate(deadline)
		if err == nil {
			err = at(c, regs)
		}
		if err == nil {
			err = c.Open()
		}
		if err != nil {
			return err
		}
	}
	if err := c.AwaitExec(deadline); err != nil {
		var step *nsexec.StepError
		if errors.As(err, &step) && step.Step == "launch" && step.Syscall != "" { // has no name of its own
			return fmt.Errorf("%s: %w", step.Syscall, step.Errno)
		}
		return err
	}
	select {
	case <-c.Done():
	case <-time.After(patience):
		return errors.New("the probe's child does not end")
	}
	if st := c.Exit(); st.Signal != 0 {
		return fmt.Errorf("the probe's child was killed by %s", unix.SignalName(st.Signal))
	}
	return nil
}

// end takes a child away, wherever it is.
func end(c *nsexec.Child) {
	c.Abandon()
	_ = c.Signal(unix.SIGKILL)
	select {
	case <-c.Done():
		_ = c.Close()
	case <-time.After(patience): // stuck in the kernel: nothing helps
	}
}

// mapIDs returns a user namespace whose root is user 100000 here, or for an
// ordinary user, itself.
func (e *env) mapIDs() (int, error) {
	uids, gids := "0 100000 65536", "0 100000 65536"
	if os.Geteuid() != 0 {
		uids, gids = fmt.Sprintf("0 %d 1", os.Geteuid()), fmt.Sprintf("0 %d 1", os.Getegid())
	}
	ns := -1
	err := e.run(nsexec.Launch{Namespaces: unix.CLONE_NEWUSER, Cgroup: -1, PIDNS: -1},
		func(p *nsexec.Program) { p.Gate("maps") },
		func(c *nsexec.Child, _ *nsexec.Registers) error {
			return c.WhileAlive(func(pid int) error {
				proc := fmt.Sprintf("/proc/%d/", pid)
				for _, w := range [][2]string{{"setgroups", "deny"}, {"uid_map", uids}, {"gid_map", gids}} {
					if err := os.WriteFile(proc+w[0], []byte(w[1]), 0); err != nil {
						return err
					}
				}
				var err error
				ns, err = unix.Open(proc+"ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
				return err
			})
		})
	if err != nil && ns >= 0 {
		unix.Close(ns)
		ns = -1
	}
	return ns, err
}

// knows reports whether a file of words, one or more a line, has a word.
func knows(path, word string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		for w := range strings.FieldsSeq(s.Text()) {
			if w == word {
				return true
			}
		}
	}
	return false
}

// haveFileSystem asks without loading a module, which fsopen would do.
func haveFileSystem(name string) error {
	if !knows("/proc/filesystems", name) {
		return fmt.Errorf("not in /proc/filesystems, is the module loaded? (%w)", unix.ENODEV)
	}
	return nil
}

// fd keeps nothing of a descriptor but whether it could be had.
func fd(n int, err error) error {
	if err == nil {
		unix.Close(n)
	}
	return err
}

// expect makes a certain errno the proof that a feature is there: the kernel
// got as far as to refuse our arguments.
func expect(err error, proofs ...unix.Errno) error {
	for _, p := range proofs {
		if errors.Is(err, p) {
			return nil
		}
	}
	return err
}
