package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Stdio for hosts without streams: an rpcio:// URI in Create or Exec (what
// follows does not matter) has the StdIO service move the bytes. The daemon's
// end of such a stdio is a pipe like any other, so pumps, drains and deadlines
// are the same as for all stdio; behind the pipe are rpcOutput and rpcInput.

const (
	// rpcHistory is how much output is kept for readers yet to come, and how far
	// a process may be ahead of its reader, not counting two pipes.
	rpcHistory = 128 << 10
	// rpcChunk is the most that is read or sent at once: what a pipe holds.
	rpcChunk = 64 << 10
	// rpcStall is how long a reader that others wait for may take for nothing
	// before it is cut off.
	rpcStall = 5 * time.Second
)

// rpcOutput holds the end of what a process has written to one of its fds. The
// oldest bytes give way once every reader has had them; while nobody has, or
// the slowest reader has not, the process waits as it would at a full pipe.
// Readers may come and go; each begins with the oldest byte there is. Safe for
// concurrent use.
type rpcOutput struct {
	stall time.Duration // rpcStall

	mu      sync.Mutex // guards all below
	changed chan struct{}
	data    []byte // the bytes from start on
	start   int64  // counted from the first byte ever written
	had     int64  // up to here some reader has had the bytes
	readers map[*rpcReader]struct{}
	closed  bool // no more is waited for: take what comes, keep what fits
	eof     bool
}

// rpcReader is one reader of an rpcOutput.
type rpcReader struct {
	out   *rpcOutput
	at    int64     // the next byte it wants
	since time.Time // it has got nothing since
	err   error     // why it has been cut off
}

// newRPCOutput returns the output and the end that is written to: closing it is
// the end of the output.
func newRPCOutput() (*rpcOutput, *os.File, error) {
	r, w, err := rpcPipe()
	if err != nil {
		return nil, nil, err
	}
	o := &rpcOutput{stall: rpcStall, changed: make(chan struct{}), readers: map[*rpcReader]struct{}{}}
	go o.fill(r)
	return o, w, nil
}

// rpcPipe is a pipe both of whose ends are ours.
func rpcPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// fill is the goroutine that takes the output in. It ends when the writing end
// is closed, which every pump does in the end.
func (o *rpcOutput) fill(r *os.File) {
	defer r.Close()
	for {
		space := o.awaitRoom()
		n, err := o.readInto(r, space)
		if err != nil || n == 0 {
			o.mu.Lock()
			o.eof = true
			o.wake()
			o.mu.Unlock()
			return
		}
	}
}

// readInto waits for output without a buffer and appends what there is.
func (o *rpcOutput) readInto(r *os.File, space int) (n int, err error) {
	rc, err := r.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = rc.Read(func(fd uintptr) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		have := len(o.data)
		// The pipe says how much there is, so that no memory is held for nothing.
		ready, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		buf := append(o.data, make([]byte, min(max(ready, 1), space))...)
		for {
			n, readErr = unix.Read(int(fd), buf[have:])
			if readErr != unix.EINTR {
				break
			}
		}
		o.data = buf[:have+max(n, 0)]
		if n > 0 {
			o.wake()
		}
		return readErr != unix.EAGAIN
	})
	return max(n, 0), errors.Join(err, readErr)
}

// wake tells everybody who waits that something has changed. The caller holds mu.
func (o *rpcOutput) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// awaitRoom drops what need not be kept, waits until there is room and returns
// how much.
func (o *rpcOutput) awaitRoom() int {
	for {
		o.mu.Lock()
		o.trim()
		room := rpcHistory - len(o.data)
		if o.closed {
			room = rpcChunk
		}
		changed, next := o.changed, o.cutOff(room <= 0)
		o.mu.Unlock()
		if room > 0 {
			return min(room, rpcChunk)
		}
		if next == 0 {
			next = time.Hour // somebody will tell
		}
		t := time.NewTimer(next)
		select {
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// trim drops the oldest bytes to make room for as much as is read at once, none
// that a reader still has to get. The caller holds mu.
func (o *rpcOutput) trim() {
	need := int64(len(o.data) + rpcChunk - rpcHistory)
	if need <= 0 {
		return
	}
	upto := min(o.start+need, o.had)
	if o.closed && len(o.readers) == 0 {
		upto = o.start + need
	}
	for r := range o.readers {
		upto = min(upto, r.at)
	}
	if n := upto - o.start; n > 0 {
		o.data = append(o.data[:0], o.data[n:]...)
		o.start = upto
	}
}

// cutOff ends the readers that hold up the others for too long, if there is no
// room. It returns how long until it should be asked again, 0 if that is of no
// use. The caller holds mu.
func (o *rpcOutput) cutOff(full bool) (next time.Duration) {
	if !full {
		return 0
	}
	end, ahead := o.start+int64(len(o.data)), false
	for r := range o.readers {
		ahead = ahead || r.at == end
	}
	if !ahead { // all are slow: then so is the process
		return 0
	}
	for r := range o.readers {
		if r.at > o.start {
			continue
		}
		left := o.stall - time.Since(r.since)
		if left <= 0 {
			r.err = sys.Mark(sys.ErrState, fmt.Errorf("this reader is too slow: %d bytes wait for it, and other readers for more", end-r.at))
			delete(o.readers, r)
			o.wake()
			left = time.Millisecond
		}
		if next == 0 || left < next {
			next = left
		}
	}
	return next
}

// close says that Delete has come: no process waits any more. Readers that are
// there get everything.
func (o *rpcOutput) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.wake()
}

// reader returns a new reader; the caller closes it.
func (o *rpcOutput) reader() *rpcReader {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := &rpcReader{out: o, at: o.start, since: time.Now()}
	o.readers[r] = struct{}{}
	return r
}

func (r *rpcReader) close() {
	r.out.mu.Lock()
	defer r.out.mu.Unlock()
	delete(r.out.readers, r)
	r.out.wake()
}

// next waits for the next bytes; eof says that there will be none after them.
// The bytes are the caller's.
func (r *rpcReader) next(ctx context.Context) (data []byte, eof bool, err error) {
	o := r.out
	for {
		o.mu.Lock()
		if r.err != nil {
			o.mu.Unlock()
			return nil, false, r.err
		}
		rest := o.data[r.at-o.start:]
		data = append(data, rest[:min(len(rest), rpcChunk)]...)
		r.at += int64(len(data))
		eof = o.eof && r.at == o.start+int64(len(o.data))
		if len(data) > 0 {
			r.since, o.had = time.Now(), max(o.had, r.at)
			o.wake()
		}
		changed := o.changed
		o.mu.Unlock()
		if len(data) > 0 || eof {
			return data, eof, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// rpcInput is what WriteStdin writes to. Safe for concurrent use.
type rpcInput struct {
	turn chan struct{} // holds a token while somebody writes
	w    *os.File
}

// newRPCInput returns the input and the end that is read from.
func newRPCInput() (*rpcInput, *os.File, error) {
	r, w, err := rpcPipe()
	if err != nil {
		return nil, nil, err
	}
	return &rpcInput{turn: make(chan struct{}, 1), w: w}, r, nil
}

// write returns how much has been taken until ctx ended, and an error if it is
// not all.
func (in *rpcInput) write(ctx context.Context, data []byte) (int, error) {
	select {
	case in.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-in.turn }()
	if err := in.w.SetWriteDeadline(time.Time{}); err != nil {
		return 0, errStdinClosed
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = in.w.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	n, err := in.w.Write(data)
	if !stop() {
		<-expired
	}
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = ctx.Err()
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE):
		err = errStdinClosed
	}
	return n, err
}

// Close is the end of the input.
func (in *rpcInput) Close() error { return in.w.Close() }

var errStdinClosed = sys.Mark(sys.ErrState, errors.New("stdin is closed"))
