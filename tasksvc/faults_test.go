package tasksvc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Fault injection without a hook in the code under test. The daemon of these
// tests is this test binary once more (TestFaultsDaemon). A seccomp filter on
// all of its threads, which its children inherit, asks the test before each
// system call of the list below: the test lets all go on but the N-th of one
// life of a container, which fails with EIO. N goes from 1 to as many calls as
// a life has: so every step of the daemon and every instruction of the launch
// programs fails once. Afterwards the daemon must hold what it held before.

// fallible are the calls that are made to fail. Left out is what the Go runtime
// itself lives on (futex, mmap, epoll, clone), what cannot fail (getpid), and
// read, close and waitid, whose failure says nothing about the kernel.
var fallible = map[string]uint32{
	"openat": unix.SYS_OPENAT, "openat2": unix.SYS_OPENAT2, "mkdirat": unix.SYS_MKDIRAT, "mknodat": unix.SYS_MKNODAT, "symlinkat": unix.SYS_SYMLINKAT,
	"unlinkat": unix.SYS_UNLINKAT, "fchmod": unix.SYS_FCHMOD, "fchmodat": unix.SYS_FCHMODAT, "fchown": unix.SYS_FCHOWN, "fchownat": unix.SYS_FCHOWNAT,
	"statx": unix.SYS_STATX, "fstat": unix.SYS_FSTAT, "newfstatat": unix.SYS_NEWFSTATAT, "readlinkat": unix.SYS_READLINKAT, "getdents64": unix.SYS_GETDENTS64,
	"pipe2": unix.SYS_PIPE2, "socket": unix.SYS_SOCKET, "socketpair": unix.SYS_SOCKETPAIR, "clone3": unix.SYS_CLONE3,
	"pidfd_open": unix.SYS_PIDFD_OPEN, "pidfd_getfd": unix.SYS_PIDFD_GETFD, "pidfd_send_signal": unix.SYS_PIDFD_SEND_SIGNAL,
	"setns": unix.SYS_SETNS, "unshare": unix.SYS_UNSHARE, "execve": unix.SYS_EXECVE, "mount": unix.SYS_MOUNT, "umount2": unix.SYS_UMOUNT2,
	"fsopen": unix.SYS_FSOPEN, "fsconfig": unix.SYS_FSCONFIG, "fsmount": unix.SYS_FSMOUNT, "move_mount": unix.SYS_MOVE_MOUNT, "open_tree": unix.SYS_OPEN_TREE,
	"mount_setattr": unix.SYS_MOUNT_SETATTR, "pivot_root": unix.SYS_PIVOT_ROOT, "chdir": unix.SYS_CHDIR, "fchdir": unix.SYS_FCHDIR, "chroot": unix.SYS_CHROOT,
	"getcwd": unix.SYS_GETCWD, "sethostname": unix.SYS_SETHOSTNAME, "setsid": unix.SYS_SETSID, "dup3": unix.SYS_DUP3, "fcntl": unix.SYS_FCNTL,
	"ioctl": unix.SYS_IOCTL, "prctl": unix.SYS_PRCTL, "capset": unix.SYS_CAPSET, "setresuid": unix.SYS_SETRESUID, "setresgid": unix.SYS_SETRESGID,
	"setgroups": unix.SYS_SETGROUPS, "prlimit64": unix.SYS_PRLIMIT64, "close_range": unix.SYS_CLOSE_RANGE, "keyctl": unix.SYS_KEYCTL, "bpf": unix.SYS_BPF,
	"seccomp": unix.SYS_SECCOMP, "inotify_init1": unix.SYS_INOTIFY_INIT1, "inotify_add_watch": unix.SYS_INOTIFY_ADD_WATCH, "statfs": unix.SYS_STATFS,
	"fstatfs": unix.SYS_FSTATFS, "write": unix.SYS_WRITE,
}

// supervisor decides about the daemon's calls.
type supervisor struct {
	listener int
	daemon   int // pid
	names    map[uint32]string

	mu      sync.Mutex // guards all below
	armed   bool
	target  int
	seen    int
	hit     string
	ours    map[uint32]bool // threads that are the daemon's
	loaded  map[uint32]bool // children that run their own program
	stopped bool
}

// serve answers until the daemon is gone.
func (s *supervisor) serve() {
	for {
		fds := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 1000)
		switch {
		case err == unix.EINTR || err == nil && n == 0:
			s.mu.Lock()
			stopped := s.stopped
			s.mu.Unlock()
			if stopped {
				return
			}
			continue
		case err != nil || fds[0].Revents&unix.POLLIN == 0:
			return
		}
		note, err := nextNotification(s.listener)
		if err != nil {
			continue
		}
		fail := unix.Errno(0)
		if s.strike(&note) {
			fail = unix.EIO
		}
		_ = note.decide(s.listener, fail)
	}
}

// strike counts a call and says whether it is the one to fail.
func (s *supervisor) strike(n *notification) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed || s.loaded[n.pid] {
		return false
	}
	ours := s.isOurs(n.pid)
	name := s.names[uint32(n.nr)]
	if name == "clone3" && ours && makesThread(n) {
		return false // the runtime's: it cannot go on without
	}
	what := ""
	if name == "write" || name == "fcntl" {
		what, _ = os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, n.args[0]))
		if ours && !strings.HasPrefix(what, "/sys/") && !strings.HasPrefix(what, "/proc/") {
			return false // the runtime's, or bytes of somebody's stdio
		}
	}
	s.seen++
	if s.seen == s.target {
		s.hit = fmt.Sprintf("%s %s of the daemon", name, what)
		if !ours {
			s.hit = fmt.Sprintf("%s %s of a launch program", name, what)
		}
		return true
	}
	if name == "execve" && !ours {
		s.loaded[n.pid] = true
	}
	return false
}

// makesThread tells by the flags in struct clone_args, clone(2), whether a clone3
// is glibc's pthread_create.
func makesThread(n *notification) bool {
	var flags [8]byte
	local := []unix.Iovec{{Base: &flags[0], Len: 8}}
	_, err := unix.ProcessVMReadv(int(n.pid), local, []unix.RemoteIovec{{Base: uintptr(n.args[0]), Len: 8}}, 0)
	return err == nil && binary.NativeEndian.Uint64(flags[:])&unix.CLONE_THREAD != 0
}

func (s *supervisor) isOurs(tid uint32) bool {
	if s.ours[tid] {
		return true
	}
	_, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", s.daemon, tid))
	if err == nil {
		s.ours[tid] = true
	}
	return err == nil
}

// arm makes the target-th call from now on fail.
func (s *supervisor) arm(target int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed, s.target, s.seen, s.hit = true, target, 0, ""
	clear(s.loaded)
	clear(s.ours)
}

// disarm returns how many calls there were and which was made to fail.
func (s *supervisor) disarm() (seen int, hit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	return s.seen, s.hit
}

// faultOrder is what the test tells its daemon, faultReport the answer.
type faultOrder struct {
	Scenario string
	Go       bool // the second message of a life: the calls are counted now
}

type faultReport struct {
	Ready bool   // to begin
	Ended bool   // the life, as far as it came: the cleaning up follows
	Error string // of the first call that failed
	Call  string // which one
	Left  string // what is there that was not before, or is not
}

// TestFaults fails every step of a container's life once.
func TestFaults(t *testing.T) {
	requireRoot(t)
	for _, scenario := range []string{"plain", "rich"} {
		t.Run(scenario, func(t *testing.T) { failEverything(t, scenario) })
	}
}

func failEverything(t *testing.T, scenario string) {
	control, s := startFaultsDaemon(t)
	life := func(target int) (int, string, faultReport) {
		r := control.ask(t, faultOrder{Scenario: scenario})
		require.True(t, r.Ready, r)
		s.arm(target)
		r = control.ask(t, faultOrder{Go: true})
		seen, hit := s.disarm()
		require.True(t, r.Ended, r)
		end := control.ask(t, faultOrder{Go: true})
		r.Left = end.Left
		return seen, hit, r
	}
	all, _, r := life(0)
	require.Empty(t, r.Error, "without a fault")
	require.Empty(t, r.Left, "without a fault")
	t.Logf("%d calls can fail", all)
	step := soak(1, 3) // all of them with VMINIT_SOAK set
	if os.Getenv("VMINIT_RUNG") == "vm" {
		step = soak(7, 61) // under emulation a life takes a second
	}
	failed, tolerated, lastCreate := map[string]int{}, 0, 0
	fail := func(target int) {
		_, hit, r := life(target)
		if hit == "" {
			return // this life had fewer
		}
		if r.Left != "" {
			t.Errorf("call %d, %s: %s: %s\nleft behind:\n%s", target, hit, r.Call, r.Error, r.Left)
		}
		switch {
		case r.Error == "":
			tolerated++
			if testing.Verbose() {
				t.Logf("tolerated: call %d, %s", target, hit)
			}
		default:
			failed[r.Call]++
			if r.Call == "create" {
				lastCreate = max(lastCreate, target)
			}
		}
	}
	for target := 1; target <= all+5; target += step {
		fail(target)
	}
	// Start is one or two calls, and goroutines take turns as they like, so the
	// N-th call is not the same one in every life: it may have been missed.
	const near = 8
	for tries := 0; step == 1 && failed["start"] == 0 && tries < 20*near; tries++ {
		fail(lastCreate - near/2 + tries%near)
	}
	t.Logf("made to fail: %v; %d faults had no consequence", failed, tolerated)
	require.NotZero(t, failed["create"])
	for _, call := range []string{"start", "start exec", "delete"} {
		require.True(t, failed[call] > 0 || step > 1, "no fault has reached %s", call)
	}
}

// controlSocket carries a question and its answer at a time.
type controlSocket struct{ fd int }

func (c controlSocket) send(v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = unix.Sendto(c.fd, data, unix.MSG_NOSIGNAL, nil)
	}
	return err
}

func (c controlSocket) receive(v any) error {
	buf := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errors.New("the other side is gone")
		default:
			return json.Unmarshal(buf[:n], v)
		}
	}
}

func (c controlSocket) ask(t *testing.T, o faultOrder) (r faultReport) {
	require.NoError(t, c.send(o))
	require.NoError(t, c.receive(&r), "the daemon has crashed or hangs")
	return r
}

// startFaultsDaemon starts this binary as the daemon under test.
func startFaultsDaemon(t *testing.T) (controlSocket, *supervisor) {
	sv, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.SetsockoptTimeval(sv[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 120}))
	theirs := os.NewFile(uintptr(sv[1]), "control")
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^TestFaultsDaemon$", "-test.v")
	cmd.Env = append(os.Environ(), "VMINIT_FAULTS=3")
	cmd.ExtraFiles = []*os.File{theirs}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	theirs.Close()
	control := controlSocket{sv[0]}

	s := &supervisor{listener: -1, daemon: cmd.Process.Pid, names: map[uint32]string{}, ours: map[uint32]bool{}, loaded: map[uint32]bool{}}
	for name, nr := range fallible {
		s.names[nr] = name
	}
	var served sync.WaitGroup
	t.Cleanup(func() {
		unix.Close(sv[0]) // it ends by itself
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			if err != nil || t.Failed() {
				t.Errorf("the daemon: %v\n%s", err, out.String())
			}
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			t.Errorf("the daemon does not end: %v", <-ended)
		}
		if s.listener >= 0 {
			s.mu.Lock()
			s.stopped = true
			s.mu.Unlock()
			served.Wait()
			unix.Close(s.listener)
		}
	})
	oob := make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(sv[0], make([]byte, 16), oob, unix.MSG_CMSG_CLOEXEC)
	require.NoError(t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	require.NoError(t, err)
	require.Len(t, messages, 1, "the daemon did not come up")
	rights, err := unix.ParseUnixRights(&messages[0])
	require.NoError(t, err)

	s.listener = rights[0]
	served.Go(s.serve)
	return control, s
}
