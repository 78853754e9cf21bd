package vsockstream

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// eachWay runs fn with splice as chosen, and with copying forced.
func eachWay(t *testing.T, fn func(t *testing.T, tr transport, adjust func(*Pump))) {
	eachTransport(t, func(t *testing.T, tr transport) {
		t.Run("splice", func(t *testing.T) { fn(t, tr, func(p *Pump) { p.m.splicing = canSplice(p.m) }) })
		t.Run("copy", func(t *testing.T) { fn(t, tr, func(p *Pump) { p.m.splicing = false }) })
	})
}

func canSplice(m *mover) bool {
	return (m.src.kind == kindPipe || m.dst.kind == kindPipe) && !m.dst.append
}

func startAdjusted(t testing.TB, cfg PumpConfig, adjust func(*Pump)) *Pump {
	t.Helper()
	p, err := NewPump(cfg)
	require.NoError(t, err)
	adjust(p)
	t.Cleanup(func() { p.Close() })
	require.NoError(t, p.Start())
	return p
}

// TestPumpOutput: all output arrives, then the half-close; the connection lives
// on until Close.
func TestPumpOutput(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		near, far := tr.pair(t)
		r, w := pipe(t)
		p := startAdjusted(t, PumpConfig{Dst: near, Src: r}, adjust)
		got := readAll(far)
		want := pattern(3<<20 + 17)
		_, err := w.Write(want)
		require.NoError(t, err)
		w.Close()
		require.Equal(t, want, await(t, got, "output"))
		await(t, p.Done(), "pump")
		require.NoError(t, p.Err())
		require.EqualValues(t, len(want), p.moved.Load())

		_, err = far.Write([]byte("still open"))
		require.NoError(t, err, "the connection must stay open until Close")
		require.NoError(t, p.Close())
		require.NoError(t, p.Close())
	})
}

// TestPumpInput: more than a pipe holds, to a reader that starts late, then
// half-close is the end of its input.
func TestPumpInput(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		near, far := tr.pair(t)
		r, w := pipe(t)
		p := startAdjusted(t, PumpConfig{Dst: w, Src: near}, adjust)
		want := pattern(1<<20 + 3)
		sent := make(chan error, 1)
		go func() {
			_, err := far.Write(want)
			sent <- errors.Join(err, far.CloseWrite())
		}()
		time.Sleep(20 * time.Millisecond)
		require.Equal(t, want, await(t, readAll(r), "input"))
		require.NoError(t, await(t, sent, "sender"))
		await(t, p.Done(), "pump")
		require.NoError(t, p.Err())
	})
}

// TestPumpStalled: a reader that never reads holds up its own pump, which can
// be closed, and no other.
func TestPumpStalled(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		near, _ := tr.pair(t)
		r, w := pipe(t)
		stalled := startAdjusted(t, PumpConfig{Dst: near, Src: r}, adjust)
		wrote := make(chan struct{})
		go func() { w.Write(pattern(16 << 20)); close(wrote) }()

		near2, far2 := tr.pair(t)
		r2, w2 := pipe(t)
		startAdjusted(t, PumpConfig{Dst: near2, Src: r2}, adjust)
		go func() { w2.Write([]byte("hello")); w2.Close() }()
		require.Equal(t, "hello", string(await(t, readAll(far2), "the other's output")))

		select {
		case <-stalled.Done():
			t.Fatal("done although nobody reads")
		default:
		}
		require.NoError(t, stalled.Close())
		await(t, stalled.Done(), "closed pump")
		require.ErrorIs(t, stalled.Err(), net.ErrClosed)
		await(t, wrote, "writer")
	})
}

// TestPumpReaderGone: the host's end is gone; the process that writes is
// neither blocked nor killed.
func TestPumpReaderGone(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		near, far := tr.pair(t)
		r, w := pipe(t)
		p := startAdjusted(t, PumpConfig{Dst: near, Src: r}, adjust)
		far.Close()
		for range 64 {
			_, err := w.Write(pattern(1 << 16))
			require.NoError(t, err)
		}
		w.Close()
		await(t, p.Done(), "pump")
		require.Error(t, p.Err())
		require.True(t, errors.Is(p.Err(), unix.EPIPE) || errors.Is(p.Err(), unix.ECONNRESET), p.Err())
	})
}

// TestPumpInputUnwanted: the process has closed its stdin; the host can write
// all it has and is not held up.
func TestPumpInputUnwanted(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		near, far := tr.pair(t)
		r, w := pipe(t)
		p := startAdjusted(t, PumpConfig{Dst: w, Src: near}, adjust)
		r.Close()
		far.SetWriteDeadline(time.Now().Add(patience))
		_, err := far.Write(pattern(4 << 20))
		require.NoError(t, err)
		require.NoError(t, far.CloseWrite())
		await(t, p.Done(), "pump")
		require.ErrorIs(t, p.Err(), unix.EPIPE)
		require.Zero(t, p.moved.Load())
	})
}

// TestPumpIgnoredHalfClose: a backend that ignores the half-close gets
// everything, and Close ends it.
func TestPumpIgnoredHalfClose(t *testing.T) {
	checkLeaks(t)
	near, far := socketPair(t)
	r, w := pipe(t)
	p := startPump(t, PumpConfig{Dst: noHalfClose{near}, Src: r})
	w.Write([]byte("all"))
	w.Close()
	await(t, p.Done(), "pump")
	got := readAll(far)
	select {
	case <-got:
		t.Fatal("ended before Close")
	case <-time.After(20 * time.Millisecond):
	}
	require.NoError(t, p.Close())
	require.Equal(t, "all", string(await(t, got, "output")))
}

type noHalfClose struct{ Conn }

func (noHalfClose) CloseWrite() error { return unix.EOPNOTSUPP }

// TestPumpEnds: pairs other than pipe and socket.
func TestPumpEnds(t *testing.T) {
	checkLeaks(t)
	dir := t.TempDir()
	want := pattern(300_000)
	file := filepath.Join(dir, "in")
	require.NoError(t, os.WriteFile(file, want, 0o600))

	t.Run("file to pipe to appended file", func(t *testing.T) {
		src, err := os.Open(file)
		require.NoError(t, err)
		out := filepath.Join(dir, "log")
		require.NoError(t, os.WriteFile(out, []byte("old "), 0o600))
		dst, err := os.OpenFile(out, os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		r, w := pipe(t)
		p1, p2 := startPump(t, PumpConfig{Dst: w, Src: src}), startPump(t, PumpConfig{Dst: dst, Src: r})
		await(t, p1.Done(), "file to pipe")
		await(t, p2.Done(), "pipe to file")
		require.NoError(t, p1.Err())
		require.NoError(t, p2.Err())
		got, err := os.ReadFile(out)
		require.NoError(t, err)
		require.Equal(t, append([]byte("old "), want...), got)
	})
	t.Run("pipe to pipe", func(t *testing.T) {
		r1, w1 := pipe(t)
		r2, w2 := pipe(t)
		p := startPump(t, PumpConfig{Dst: w2, Src: r1})
		got := readAll(r2)
		w1.Write(want)
		w1.Close()
		require.Equal(t, want, await(t, got, "output"))
		await(t, p.Done(), "pump")
		require.NoError(t, p.Err())
	})
	t.Run("endless device", func(t *testing.T) {
		zero, err := os.Open("/dev/zero")
		require.NoError(t, err)
		null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
		require.NoError(t, err)
		p := startPump(t, PumpConfig{Dst: null, Src: zero})
		require.NoError(t, p.Close())
		require.ErrorIs(t, p.Err(), net.ErrClosed)
	})
	t.Run("socket to socket", func(t *testing.T) {
		near, far := socketPair(t)
		near2, far2 := socketPair(t)
		p := startPump(t, PumpConfig{Dst: near2, Src: near})
		got := readAll(far2)
		far.Write(want)
		far.CloseWrite()
		require.Equal(t, want, await(t, got, "output"))
		await(t, p.Done(), "pump")
		require.NoError(t, p.Err())
	})
}

// TestPumpNamedPipe: stdin from a named pipe whose writer comes late.
func TestPumpNamedPipe(t *testing.T) {
	for _, splicing := range []bool{true, false} {
		checkLeaks(t)
		path := filepath.Join(t.TempDir(), "fifo")
		require.NoError(t, unix.Mkfifo(path, 0o600))
		src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		require.NoError(t, err)
		r, w := pipe(t)
		p := startAdjusted(t, PumpConfig{Dst: w, Src: src}, func(p *Pump) { p.m.splicing = splicing })
		select {
		case <-p.Done():
			t.Fatal("ended before the first writer")
		case <-time.After(20 * time.Millisecond):
		}
		client, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(t, err)
		client.Write([]byte("typed"))
		client.Close()
		require.Equal(t, "typed", string(await(t, readAll(r), "input")))
		await(t, p.Done(), "pump")
		require.NoError(t, p.Err())
	}
}

func TestPumpRefusesBadEnds(t *testing.T) {
	checkLeaks(t)
	r, w := pipe(t)
	blocking, other, err := os.Pipe()
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, control(blocking, func(fd int) error { return unix.SetNonblock(fd, false) }))
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	for name, cfg := range map[string]PumpConfig{
		"write end as source": {Dst: w, Src: w, KeepDst: true, KeepSrc: true},
		"read end as dst":     {Dst: r, Src: r, KeepDst: true, KeepSrc: true},
		"blocking":            {Dst: w, Src: blocking, KeepDst: true},
		"directory":           {Dst: w, Src: dir, KeepDst: true},
	} {
		_, err := NewPump(cfg)
		require.ErrorIs(t, err, sys.ErrInvalid, name)
		t.Log(err)
	}
	require.ErrorIs(t, blocking.Close(), os.ErrClosed, "a failed NewPump closes what it owns")
}

// TestPumpFallsBack: where the kernel refuses to splice (EINVAL), copying takes
// over and no byte is lost.
func TestPumpFallsBack(t *testing.T) {
	checkLeaks(t)
	want := pattern(500_000)
	force := func(p *Pump) { p.m.splicing = true }

	near, far := socketPair(t)
	near2, far2 := socketPair(t)
	p := startAdjusted(t, PumpConfig{Dst: near2, Src: near}, force)
	got := readAll(far2)
	far.Write(want)
	far.CloseWrite()
	require.Equal(t, want, await(t, got, "socket to socket"))
	await(t, p.Done(), "pump")
	require.NoError(t, p.Err())
	require.False(t, p.m.splicing)

	path := filepath.Join(t.TempDir(), "log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	r, w := pipe(t)
	p = startAdjusted(t, PumpConfig{Dst: log, Src: r}, force)
	w.Write(want)
	w.Close()
	await(t, p.Done(), "pipe to appended file")
	require.NoError(t, p.Err())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, b)
}

// TestPumpAnyPace: whatever the sizes and pauses of writer and reader, the
// bytes and their order are the same.
func TestPumpAnyPace(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		for range 8 {
			near, far := tr.pair(t)
			near2, far2 := tr.pair(t)
			r, w := pipe(t)
			in := startAdjusted(t, PumpConfig{Dst: w, Src: near}, adjust)
			out := startAdjusted(t, PumpConfig{Dst: near2, Src: r}, adjust)
			want := pattern(1 + rand.IntN(400_000))
			go func() {
				for b := want; len(b) > 0; {
					n := min(len(b), 1+rand.IntN(1<<rand.IntN(18)))
					far.Write(b[:n])
					b = b[n:]
					if rand.IntN(8) == 0 {
						time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
					}
				}
				far.CloseWrite()
			}()
			var got []byte
			buf := make([]byte, 1<<16)
			far2.SetReadDeadline(time.Now().Add(patience))
			for {
				n, err := far2.Read(buf[:1+rand.IntN(1<<rand.IntN(17))])
				got = append(got, buf[:n]...)
				if err != nil {
					require.ErrorIs(t, err, io.EOF)
					break
				}
			}
			require.Equal(t, len(want), len(got))
			require.Equal(t, want, got)
			await(t, in.Done(), "input")
			await(t, out.Done(), "output")
			require.NoError(t, errors.Join(in.Err(), out.Err()))
			in.Close()
			out.Close()
		}
	})
}

// TestPumpCloseAnyTime: Close and Drain may come at any moment and from any
// goroutine; nothing hangs or leaks.
func TestPumpCloseAnyTime(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		for range 30 {
			near, far := tr.pair(t)
			r, w := pipe(t)
			p := startAdjusted(t, PumpConfig{Dst: near, Src: r}, adjust)
			go io.Copy(io.Discard, far)
			go func() {
				for b := pattern(1 << 14); ; {
					if _, err := w.Write(b); err != nil {
						return
					}
				}
			}()
			var wg sync.WaitGroup
			for range 3 {
				pause, drain := time.Duration(rand.IntN(1000))*time.Microsecond, rand.IntN(2) == 0
				wg.Go(func() {
					time.Sleep(pause)
					if drain {
						p.DrainQuiet(pause, time.Now().Add(pause))
						await(t, p.Done(), "drain")
						return
					}
					p.Close()
				})
			}
			wg.Wait()
			p.Close()
			await(t, p.Done(), "close")
			far.Close()
		}
	})
}

// TestPumpThreads: pumps wait in the poller, idle and stalled ones alike.
func TestPumpThreads(t *testing.T) {
	checkLeaks(t)
	for i := range 200 {
		near, _ := socketPair(t)
		r, w := pipe(t)
		startPump(t, PumpConfig{Dst: near, Src: r})
		if i%2 == 0 {
			go w.Write(pattern(1 << 20)) // ends when the pump is closed
		}
	}
	time.Sleep(50 * time.Millisecond)
	tasks, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	require.Less(t, len(tasks), 64, "threads")
}

// TestPumpCloseBeforeStart closes the ends without a goroutine.
func TestPumpCloseBeforeStart(t *testing.T) {
	checkLeaks(t)
	near, far := socketPair(t)
	r, _ := pipe(t)
	p, err := NewPump(PumpConfig{Dst: near, Src: r})
	require.NoError(t, err)
	require.NoError(t, p.Close())
	await(t, p.Done(), "pump")
	require.Empty(t, await(t, readAll(far), "output"))
	require.ErrorIs(t, p.Start(), sys.ErrState)
	p.Drain(time.Time{})
}
