package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/vmtest/probe/pattern"
)

func runExit(c *invocation) int { return c.number(c.parse(1, 1)[0]) }

// duration is an optional argument; none means forever.
func (c *invocation) duration(args []string) time.Duration {
	if len(args) == 0 {
		return forever
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		c.wrong("duration", err)
	}
	return d
}

const forever = time.Duration(1<<63 - 1)

func runSleep(c *invocation) int {
	ignore := c.flags.String("ignore", "", "")
	d := c.duration(c.parse(0, 1))
	ignored := make(map[unix.Signal]bool)
	for name := range strings.SplitSeq(*ignore, ",") {
		if name == "" {
			continue
		}
		sig := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
		if sig == 0 {
			c.wrong("signal", fmt.Errorf("no signal %q", name))
		}
		ignored[sig] = true
	}
	// The kernel drops signals that PID 1 of a namespace does not handle.
	deadly := make(chan os.Signal, 1)
	if os.Getpid() == 1 {
		signal.Notify(deadly, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	}
	for sig := unix.Signal(1); sig <= 64; sig++ {
		switch {
		case ignored[sig]:
			_ = setSignal(sig, sigIgnore) // not for KILL and STOP
		case os.Getpid() != 1:
			_ = setSignal(sig, sigDefault)
		}
	}
	select {
	case <-time.After(d):
		return 0
	case s := <-deadly:
		return 128 + int(s.(unix.Signal))
	}
}

func runBurst(c *invocation) int {
	stderr := c.flags.Bool("stderr", false, "")
	chunk := c.flags.String("chunk", "64K", "")
	exit := c.flags.Int("exit", 0, "")
	n := c.bytes(c.parse(1, 1)[0])
	out := os.Stdout
	if *stderr {
		out = os.Stderr
	}
	size := c.bytes(*chunk)
	if size == 0 || size > 1<<30 {
		c.wrong("-chunk", fmt.Errorf("%d bytes", size))
	}
	buf := make([]byte, size)
	if _, err := io.CopyBuffer(onlyWriter{out}, pattern.NewReader(n), buf); err != nil {
		fmt.Fprintf(os.Stderr, "probe burst: %v\n", err)
		return exitFailed
	}
	return *exit
}

// onlyWriter keeps io.Copy to the buffer it was given.
type onlyWriter struct{ io.Writer }

func runSum(c *invocation) int {
	c.parse(0, 0)
	h := sha256.New()
	n, err := io.Copy(h, os.Stdin)
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe sum: %v\n", err)
		return exitFailed
	}
	return c.result(struct {
		Bytes  int64  `json:"bytes"`
		SHA256 string `json:"sha256"`
	}{n, hex.EncodeToString(h.Sum(nil))})
}

func runEcho(c *invocation) int {
	words := c.parse(0, -1)
	var err error
	if len(words) > 0 {
		_, err = fmt.Println(strings.Join(words, " "))
	} else {
		_, err = io.Copy(onlyWriter{os.Stdout}, os.Stdin)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe echo: %v\n", err)
		return exitFailed
	}
	return 0
}

func runWrite(c *invocation) int {
	appending := c.flags.Bool("append", false, "")
	args := c.parse(1, 2)
	how := os.O_TRUNC
	if *appending {
		how = os.O_APPEND
	}
	var res struct {
		Bytes int64  `json:"bytes"`
		Errno string `json:"errno,omitempty"`
	}
	var from io.Reader = os.Stdin
	if len(args) == 2 {
		from = strings.NewReader(args[1])
	}
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|how, 0o666)
	if err == nil {
		res.Bytes, err = io.Copy(onlyWriter{f}, from)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err == nil {
		return c.result(res)
	}
	res.Errno = errname(err)
	c.result(res)
	return exitFailed
}

func runSpin(c *invocation) int {
	threads := c.flags.Int("threads", 1, "")
	d := c.duration(c.parse(0, 1))
	runtime.GOMAXPROCS(max(*threads, 1) + 1) // one for the timer
	for range *threads {
		go func() {
			for {
			}
		}()
	}
	time.Sleep(d)
	return 0
}

func runSignalReport(c *invocation) int {
	count := c.flags.Int("count", -1, "")
	c.parse(0, 0)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	fmt.Println("ready")
	for n := 0; n != *count; n++ {
		var s os.Signal
		for s = range signals {
			if s != unix.SIGURG { // the Go runtime sends it to itself
				break
			}
		}
		name := unix.SignalName(s.(unix.Signal))
		if name == "" {
			name = fmt.Sprintf("SIG%d", int(s.(unix.Signal)))
		}
		fmt.Println(name)
	}
	return 0
}
