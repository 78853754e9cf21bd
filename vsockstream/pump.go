package vsockstream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vminit/internal/sys"
)

// End is what a pump reads from or writes to: a Conn, or an *os.File that is a
// pipe, a named pipe, a pseudo terminal's master, a character device or a
// regular file. Everything that can block must be non-blocking and known to
// Go's poller, as os.OpenFile with O_NONBLOCK and os.NewFile of a non-blocking
// descriptor make it; NewPump checks.
type End interface {
	io.Closer
	syscall.Conn
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// PumpConfig names the two ends of a pump. The pump owns them from NewPump on,
// also when that fails, except those it is told to keep open.
type PumpConfig struct {
	Dst, Src End
	// KeepDst and KeepSrc leave an end open, for a pseudo terminal's master
	// that two pumps and a resize share. A kept end must outlive the pump.
	// The pump sets read deadlines on Src and write deadlines on Dst; nobody
	// else may.
	KeepDst, KeepSrc bool
	// Reopens says that the hang-up of a terminal is not its end: a program
	// such as getty or systemd closes and reopens it. The pump then ends by
	// Drain or Close only.
	Reopens bool
}

// Pump moves bytes from one end to another in one goroutine that blocks no
// thread. What the kernel does well by splice(2) goes that way, the rest
// through one buffer that is held only while there are bytes to move; so a
// pump whose destination stalls holds at most one buffer and stops reading:
// back-pressure ends at the source.
//
// A pump is in one of these states:
//
//   - new: NewPump made it; Start has not been called.
//   - running: bytes move until the source ends. End of a pipe, socket or file
//     is end of file, of a terminal its hang-up (EIO, see Reopens). A named
//     pipe opened for reading that has had no writer yet has not ended.
//   - discarding: the destination failed: its reader is gone. The source is read
//     on to its end and thrown away, so that nobody who writes to it is blocked
//     or killed. A source that is a file is done at once.
//   - draining: Drain was called. What is in the source now is moved; the pump
//     is done when the source is empty, even if a writer still has it open.
//   - done: everything was written and the destination told: a socket by
//     CloseWrite, a pipe or file by Close, a terminal not at all. A source that
//     is a pipe or file is closed too. Sockets and terminals stay open until
//     Close: a backend may drop what it has not read of a closed connection.
//   - closed: Close was called, in any state. No goroutine is left, both ends
//     are closed.
type Pump struct {
	cfg   PumpConfig
	m     *mover
	moved atomic.Int64  // bytes written to the destination so far
	done  chan struct{} // closed when the pump is done
	ended chan struct{} // closed when the goroutine is gone

	// signal says that draining or closed has changed since the goroutine last
	// looked; the read deadline is in the past then.
	signal atomic.Bool

	// mu guards the fields below, and every deadline set on the ends: so a
	// deadline always fits the state.
	mu       sync.Mutex
	started  bool
	finished bool // done or about to be: the ends' deadlines are left alone
	closed   bool
	quiet    time.Duration // of the draining state, as is deadline
	deadline time.Time
	err      error
}

// past is a deadline that wakes whoever waits on a descriptor.
var past = time.Unix(1, 0)

// NewPump checks both ends and returns a pump that does not move yet.
func NewPump(cfg PumpConfig) (*Pump, error) {
	p := &Pump{cfg: cfg, done: make(chan struct{}), ended: make(chan struct{})}
	m, err := newMover(cfg)
	if err != nil {
		p.closeEnds()
		return nil, fmt.Errorf("pump: %w", err)
	}
	p.m = m
	return p, nil
}

// Start lets the bytes move.
func (p *Pump) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.closed {
		return sys.Mark(sys.ErrState, errors.New("pump: it was started or closed before"))
	}
	p.started = true
	go p.run()
	return nil
}

// Done is closed when the pump is done: no further byte will move.
func (p *Pump) Done() <-chan struct{} { return p.done }

// AwaitPeer waits until the reader of a done pump's destination has closed it, if
// that is a socket, until deadline at most: Close may cut off what is under way.
func (p *Pump) AwaitPeer(deadline time.Time) {
	<-p.done
	if dst, ok := p.cfg.Dst.(Conn); ok && dst.SetReadDeadline(deadline) == nil {
		_, _ = io.Copy(io.Discard, dst)
	}
}

// Err says how the pump ended, once Done is closed: nil if every byte of the
// source was delivered. os.ErrDeadlineExceeded marks a Drain that ran out of
// time with bytes left, net.ErrClosed a Close that came before the end, and
// the errno of a failed end is wrapped.
func (p *Pump) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Drain tells the pump that nothing worth waiting for will be written to the
// source any more, as after a process has exited: it moves what is there now
// and is done when the source is empty or deadline has passed, whichever comes
// first. It returns at once; await Done. A zero deadline is none, and then
// only the destination's reader can hold the pump up. A new Drain replaces the
// deadline of an earlier one.
func (p *Pump) Drain(deadline time.Time) { p.DrainQuiet(0, deadline) }

// DrainQuiet is Drain for a source that may still have bytes under way, such
// as a stream whose end was announced over another connection: the source
// counts as empty once nothing has come for the time quiet.
func (p *Pump) DrainQuiet(quiet time.Duration, deadline time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.finished {
		return
	}
	p.quiet, p.deadline = quiet, deadline
	p.signal.Store(true)
	p.cfg.Src.SetReadDeadline(past) // an end that has no deadlines never blocks
	p.cfg.Dst.SetWriteDeadline(deadline)
}

// Close ends the pump in whatever state it is, waits for its goroutine and
// closes the ends it owns. What was not moved yet is lost: Drain and await
// Done first where that matters. It may be called more than once.
func (p *Pump) Close() error {
	p.mu.Lock()
	first, started := !p.closed, p.started
	p.closed = true
	if first && started && !p.finished {
		p.signal.Store(true)
		p.cfg.Src.SetReadDeadline(past)
		p.cfg.Dst.SetWriteDeadline(past)
	}
	p.mu.Unlock()
	if started {
		<-p.ended
	}
	if !first {
		return nil
	}
	if !started {
		p.finish(errPumpClosed)
	}
	return p.closeEnds()
}

func (p *Pump) closeEnds() error {
	var errs []error
	closeEnd := func(e End, keep bool) {
		if e == nil || keep {
			return
		}
		if err := e.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, fmt.Errorf("close pump: %w", err))
		}
	}
	closeEnd(p.cfg.Src, p.cfg.KeepSrc)
	closeEnd(p.cfg.Dst, p.cfg.KeepDst)
	return errors.Join(errs...)
}

// run is the pump's goroutine.
func (p *Pump) run() {
	defer close(p.ended)
	p.finish(p.loop())
}

// loop moves bytes until the source has ended, is empty while draining, or
// moving on is impossible.
func (p *Pump) loop() error {
	var lost error    // why the bytes are discarded
	var lastLook bool // the quiet time is over, but who knows when we got to run
	for {
		if err := p.heed(lastLook); err != nil {
			return errors.Join(lost, err)
		}
		n, err := p.m.move()
		if lost == nil {
			p.moved.Add(n)
		}
		switch {
		case err == nil:
			lastLook = false
		case err == io.EOF, err == errEmpty:
			return lost
		case errors.Is(err, os.ErrDeadlineExceeded):
			switch {
			case isDst(err): // bytes were taken from the source: no going on
				return errors.Join(lost, p.stopped())
			case p.signal.Load():
			case !p.m.quiet:
				return errors.Join(lost, errOverdue)
			default:
				lastLook = true
			}
		case lost == nil && isDst(err) && p.m.discard():
			lost = fmt.Errorf("pump: %w", err)
		default:
			return errors.Join(lost, fmt.Errorf("pump: %w", err))
		}
	}
}

var (
	errPumpClosed = fmt.Errorf("pump: %w before its source had ended", net.ErrClosed)
	errOverdue    = fmt.Errorf("pump: drain: %w before the source was empty and its reader had everything", os.ErrDeadlineExceeded)
)

// stopped is why the destination's deadline has passed.
func (p *Pump) stopped() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errPumpClosed
	}
	return errOverdue
}

// heed looks at what Drain and Close have ordered, before each move. In the
// draining state it sets the time until which the source is awaited; a last
// look does not wait.
func (p *Pump) heed(lastLook bool) error {
	signal := p.signal.Swap(false)
	if !signal && !p.m.draining {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	overdue := !p.deadline.IsZero() && !time.Now().Before(p.deadline)
	switch {
	case p.closed:
		return errPumpClosed
	case overdue && (signal || !lastLook):
		return errOverdue
	case signal || p.quiet > 0:
		p.m.draining, p.m.quiet = true, p.quiet > 0 && !lastLook
		p.cfg.Src.SetReadDeadline(p.readDeadlineLocked())
	}
	return nil
}

// readDeadlineLocked is until when the draining state awaits the source.
func (p *Pump) readDeadlineLocked() time.Time {
	switch {
	case p.quiet <= 0:
		return p.deadline
	case !p.m.quiet:
		return time.Time{}
	}
	q := time.Now().Add(p.quiet)
	if !p.deadline.IsZero() && p.deadline.Before(q) {
		return p.deadline
	}
	return q
}

// finish enters the done state.
func (p *Pump) finish(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finished = true
	if !p.closed {
		p.m.endDst(p.cfg.KeepDst)
		if !p.cfg.KeepSrc && p.m.src.kind != kindSocket && p.m.src.kind != kindTTY {
			p.cfg.Src.Close()
		}
	}
	// Kept ends go on without our deadlines.
	if p.cfg.KeepSrc {
		p.cfg.Src.SetReadDeadline(time.Time{})
	}
	if p.cfg.KeepDst {
		p.cfg.Dst.SetWriteDeadline(time.Time{})
	}
	p.err = err
	close(p.done)
}
