package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// runForkbomb must not need a new thread or page once tasks are scarce.
func runForkbomb(c *invocation) int {
	hold := c.flags.Duration("hold", 0, "")
	n := c.number(c.parse(1, 1)[0])
	debug.SetGCPercent(-1)
	kid := newChild(forever, 0)
	pids := make([]int, 0, max(n, 0))
	var errno unix.Errno
	for len(pids) < n {
		pid, e := kid.fork()
		if e != 0 {
			errno = e
			break
		}
		pids = append(pids, pid)
	}
	status := c.result(struct {
		Started int    `json:"started"`
		Errno   string `json:"errno,omitempty"`
	}{len(pids), unix.ErrnoName(errno)})
	pause(*hold)
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	for _, pid := range pids {
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
	return status
}

// pause sleeps in the calling thread; time.Sleep might start another one.
func pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&ts, &ts) == unix.EINTR {
	}
}

func runOrphans(c *invocation) int {
	delay := c.flags.Duration("for", 0, "")
	exit := c.flags.Int("exit", 0, "")
	n := c.number(c.parse(1, 1)[0])
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe orphans: %v\n", err)
		return exitFailed
	}
	defer r.Close()
	defer w.Close()
	parent := newChild(0, 0)
	parent.orphan, parent.reportFD = newChild(*delay, *exit), int(w.Fd())
	pids := make([]int32, 0, max(n, 0))
	for range n {
		pid, errno := parent.fork()
		if errno != 0 {
			fmt.Fprintf(os.Stderr, "probe orphans: fork: %v\n", errno)
			return exitFailed
		}
		var raw [4]byte
		if _, err := io.ReadFull(r, raw[:]); err != nil {
			fmt.Fprintf(os.Stderr, "probe orphans: %v\n", err)
			return exitFailed
		}
		_, _ = unix.Wait4(pid, nil, 0, nil)
		orphan := int32(binary.NativeEndian.Uint32(raw[:]))
		if orphan < 0 {
			fmt.Fprintf(os.Stderr, "probe orphans: fork: %v\n", unix.Errno(-orphan))
			return exitFailed
		}
		pids = append(pids, orphan)
	}
	return c.result(struct {
		PIDs []int32 `json:"pids"`
	}{pids})
}

// runFlood leaves orphans by the hundred, with every status there is.
func runFlood(c *invocation) int {
	n := c.number(c.parse(1, 1)[0])
	for left := n; left > 0; {
		parent := newChild(0, 0)
		parent.flood = min(left, 200)
		pid, errno := parent.fork()
		var st unix.WaitStatus
		if errno == 0 {
			_, _ = unix.Wait4(pid, &st, 0, nil)
		}
		if errno != 0 || st.ExitStatus() != 0 {
			fmt.Fprintf(os.Stderr, "probe flood: fork with %d left: %v, %v\n", left, errno, unix.Errno(st.ExitStatus()))
			return exitFailed
		}
		left -= parent.flood
	}
	return c.result(struct {
		Orphans int `json:"orphans"`
	}{n})
}

func runEatmem(c *invocation) int {
	hold := c.flags.Duration("hold", 0, "")
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	c.flags.BoolFunc("populate", "", func(string) error { flags |= unix.MAP_POPULATE; return nil })
	n := c.bytes(c.parse(1, 1)[0])
	// In pieces: the kernel refuses at once a piece that is larger than all memory.
	for left := n; left > 0; left -= min(left, 64<<20) {
		mem, err := unix.Mmap(-1, 0, int(min(left, 64<<20)), unix.PROT_READ|unix.PROT_WRITE, flags)
		if err != nil {
			fmt.Fprintf(os.Stderr, "probe eatmem: mmap %d bytes: %v\n", n, err)
			return exitFailed
		}
		for i := 0; i < len(mem); i += os.Getpagesize() {
			mem[i] = 1
		}
	}
	status := c.result(struct {
		Bytes int64 `json:"bytes"`
	}{n})
	pause(*hold)
	return status
}

func runHoldStdout(c *invocation) int {
	d := c.flags.Duration("for", forever, "")
	exit := c.flags.Int("exit", 0, "")
	c.parse(0, 0)
	pid, errno := newChild(*d, 0).fork()
	if errno != 0 {
		fmt.Fprintf(os.Stderr, "probe hold-stdout: fork: %v\n", errno)
		return exitFailed
	}
	fmt.Println(pid)
	return *exit
}
