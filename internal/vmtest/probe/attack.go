package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the attacker in the container does: each is a workload that tests run
// beside the operations it is aimed at.

// runSwap exchanges two names as fast as it can: what was a directory is a link
// when somebody looks again. SIGTERM ends it like the end of its time.
func runSwap(c *invocation) int {
	length := c.flags.Duration("for", 0, "")
	names := c.parse(2, 2)
	end := deadline(*length)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	swaps := 0
	fmt.Println("swapping")
	for ; swaps&0xff != 0xff || len(term) == 0 && time.Now().Before(end); swaps++ {
		if err := unix.Renameat2(unix.AT_FDCWD, names[0], unix.AT_FDCWD, names[1], unix.RENAME_EXCHANGE); err != nil {
			fmt.Fprintf(os.Stderr, "probe swap: %v\n", err)
			return exitFailed
		}
	}
	return c.result(struct {
		Swaps int `json:"swaps"`
	}{swaps})
}

// deadline is when something of a length is over, 0 being for ever.
func deadline(length time.Duration) time.Time {
	if length == 0 {
		length = 24 * time.Hour
	}
	return time.Now().Add(length)
}

// stalked is what came of going after every process that appears.
type stalked struct {
	Seen     int      `json:"seen"`     // processes that appeared
	Denied   int      `json:"denied"`   // of these, those that the kernel did not let us trace
	Caught   int      `json:"caught"`   // those that were traced before they ran a program of the container's
	Gained   []string `json:"gained"`   // their capabilities, where they were more than ours
	Leaked   []string `json:"leaked"`   // files of theirs that could be read or written before that
	Files    []string `json:"files"`    // what these have open
	Stopped  int      `json:"stopped"`  // those that were sent SIGSTOP
	Narrowed int      `json:"narrowed"` // those whose limits were changed
}

// runStalk goes after the processes that others put into this container, in the
// moment between their birth and their execve: it traces them, opens their
// memory and descriptors, or stops them. Process ids are given out in order, so
// the next one is known before it is there.
func runStalk(c *invocation) int {
	stop := c.flags.Bool("stop", false, "")
	files := c.flags.Bool("files", false, "")
	c.parse(0, 0)
	runtime.LockOSThread() // ptrace is a thread's
	var s stalked
	own, enough := capsOf("self"), make(chan os.Signal, 1)
	signal.Notify(enough, unix.SIGTERM)
	fmt.Println("stalking")
	for next, rounds := os.Getpid()+1, 0; len(enough) == 0; rounds++ {
		if rounds%32 == 0 { // some were too quick
			next = max(next, lastPID()+1)
		}
		found := 0
		for pid := next; pid < next+4; pid++ { // one may have come and gone, or be our own thread
			var err error
			switch {
			case *stop:
				err = unix.Kill(pid, 0)
			case *files:
				if _, err = os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
					err = unix.ESRCH
				}
			default:
				err = unix.PtraceSeize(pid)
			}
			if err == unix.ESRCH {
				continue
			}
			found = pid
			if _, mine := os.Stat(fmt.Sprintf("/proc/self/task/%d", pid)); mine == nil {
				continue
			}
			s.Seen++
			switch {
			case *stop:
				if unix.Kill(pid, unix.SIGSTOP) == nil {
					s.Stopped++
				}
			case *files:
				s.look(pid, own)
			case err != nil:
				s.Denied++
			default:
				s.caught(pid, own)
			}
		}
		if found > 0 {
			next = found + 1
		}
	}
	return c.result(s)
}

// lastPID is the id given out last in this pid namespace (proc_loadavg(5)).
func lastPID() int {
	data, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(data))
	pid, _ := strconv.Atoi(fields[len(fields)-1])
	return pid
}

// caught looks at a process that is being traced and lets it go.
func (s *stalked) caught(pid int, own uint64) {
	_ = unix.PtraceInterrupt(pid)
	for range 1000 { // it stops soon
		var status unix.WaitStatus
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil); err != nil || got == pid {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err == nil && !strings.HasPrefix(exe, "/bin/") {
		s.Caught++
		if caps := capsOf(strconv.Itoa(pid)); caps&^own != 0 {
			s.Gained = append(s.Gained, fmt.Sprintf("%x of %s", caps, exe))
		}
	}
	_ = unix.PtraceDetach(pid)
}

// look opens what a process has to hide as long as it has executed nothing of
// the container's, and does to it what its user may.
func (s *stalked) look(pid int, own uint64) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, f := range []struct {
		name  string
		flags int
	}{{"mem", unix.O_RDWR}, {"maps", unix.O_RDONLY}, {"environ", unix.O_RDONLY}, {"fd", unix.O_RDONLY}, {"exe", unix.O_WRONLY}, {"root", unix.O_PATH}, {"cwd", unix.O_PATH}} {
		n, err := unix.Open(dir+f.name, f.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		unix.Close(n)
		// Was it before or after? A program of the container's can be read by its user.
		if exe, err := os.Readlink(dir + "exe"); err == nil && !strings.HasPrefix(exe, "/bin/") {
			s.Leaked = append(s.Leaked, f.name+" of "+exe)
			if caps := capsOf(strconv.Itoa(pid)); caps&^own != 0 {
				s.Gained = append(s.Gained, fmt.Sprintf("%x of %s", caps, exe))
			}
			links, _ := filepath.Glob(dir + "fd/*")
			for _, link := range links {
				if target, err := os.Readlink(link); err == nil {
					s.Files = append(s.Files, target)
				}
			}
		}
	}
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: 3}, nil) == nil {
		s.Narrowed++
	}
}

// capsOf reads the permitted capabilities of a process.
func capsOf(pid string) uint64 {
	data, _ := os.ReadFile("/proc/" + pid + "/status")
	_, rest, _ := strings.Cut(string(data), "CapPrm:")
	caps, _ := strconv.ParseUint(strings.Fields(rest + " 0")[0], 16, 64)
	return caps
}

// runKeyring makes or joins a session keyring by name, opens it to everybody and
// stays. With a word, it keeps that in it.
func runKeyring(c *invocation) int {
	words := c.parse(1, 2)
	runtime.LockOSThread()
	ring, err := unix.KeyctlJoinSessionKeyring(words[0])
	if err == nil && len(words) > 1 {
		_, err = unix.AddKey("user", "probe:planted", []byte(words[1]), ring)
	}
	if err == nil {
		err = unix.KeyctlSetperm(ring, 0x3f3f3f3f)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe keyring: %v\n", err)
		return exitFailed
	}
	fmt.Println("ready")
	pause(1 << 62)
	return 0
}

// findKey looks for what runKeyring has planted in this process's own keyring.
func findKey() error {
	_, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", "probe:planted", 0)
	return err
}

// connectVsock goes as far as a peer lets it: "ok" is an answer to what looks
// like a request of ttrpc, or of the stream port.
func connectVsock(cid, port uint32) error {
	for {
		if err := askVsock(cid, port); err != unix.EINTR { // the runtime's own signals
			return err
		}
	}
}

func askVsock(cid, port uint32) error {
	s, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	_ = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	if err := unix.Connect(s, &unix.SockaddrVM{CID: cid, Port: port}); err != nil {
		return err
	}
	if _, err := unix.Write(s, []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00")); err != nil {
		return err
	}
	var b [64]byte
	n, err := unix.Read(s, b[:])
	switch {
	case err != nil:
		return err
	case n == 0:
		return fmt.Errorf("closed")
	}
	return nil
}
