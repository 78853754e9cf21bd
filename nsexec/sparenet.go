package nsexec

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// SpareNetwork keeps one new network namespace ready, with lo up. Making one
// takes longer than all the rest of clone3 together (300 to 600 us); joining one
// takes a few. It differs from one that clone3 makes in nothing but its age:
// what it inherits of the guest's sysctls is of that moment.
//
// The zero value is ready and empty. Safe for concurrent use.
type SpareNetwork struct {
	mu      sync.Mutex // guards all below
	file    *os.File
	filling bool
}

// Take hands out the namespace, or nil if there is none at the moment. The
// caller closes it.
func (s *SpareNetwork) Take() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.file
	s.file = nil
	return f
}

// Fill makes a namespace if there is none. It is not for the thread of somebody
// who waits.
func (s *SpareNetwork) Fill() error {
	s.mu.Lock()
	if s.file != nil || s.filling {
		s.mu.Unlock()
		return nil
	}
	s.filling = true
	s.mu.Unlock()
	f, err := newNetwork()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filling = false
	s.file = f
	return err
}

// newNetwork makes a network namespace in a thread that comes back afterwards,
// or ends with its goroutine if it cannot (runtime.LockOSThread).
func newNetwork() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		f, back, err := unshareNetwork()
		if back {
			runtime.UnlockOSThread()
		}
		done <- result{f, err}
	}()
	r := <-done
	return r.file, r.err
}

// unshareNetwork locks its goroutine to a thread and reports whether that is in
// its old namespace again.
func unshareNetwork() (f *os.File, back bool, err error) {
	runtime.LockOSThread()
	const link = "/proc/thread-self/ns/net"
	old, err := os.Open(link)
	if err != nil {
		return nil, true, err
	}
	defer old.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, true, fmt.Errorf("unshare a network namespace: %w", err)
	}
	f, err = os.Open(link)
	if err == nil {
		err = loopbackUp()
	}
	back = unix.Setns(int(old.Fd()), unix.CLONE_NEWNET) == nil
	if err != nil {
		f.Close()
		return nil, back, fmt.Errorf("new network namespace: %w", err)
	}
	return f, back, nil
}

// loopbackUp is LoopbackUp for the calling thread's namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
