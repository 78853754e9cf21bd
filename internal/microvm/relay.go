package microvm

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vminit/vsockstream"
)

// join moves bytes between two connections until both ways have ended, one has
// failed, or one peer has closed both. It leaves closing to its caller.
func join(a, b vsockstream.Conn) {
	var ended atomic.Int32 // ways
	oneWay := func(dst, src vsockstream.Conn) {
		_, err := io.Copy(dst, src)
		if err == nil {
			err = dst.CloseWrite()
		}
		if err == nil && ended.Add(1) < 2 {
			awaitHangup(src)
		}
		// Whatever the other way is blocked in returns now, if it has not ended.
		past := time.Unix(1, 0)
		_ = a.SetDeadline(past)
		_ = b.SetDeadline(past)
	}
	var back sync.WaitGroup
	back.Go(func() { oneWay(a, b) })
	oneWay(b, a)
	back.Wait()
}

// awaitHangup waits, after the end of data, until the peer has closed both ways,
// which end of file alone does not tell, or the deadline of c expires.
func awaitHangup(c vsockstream.Conn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		return err != nil && err != unix.EINTR || n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}
