package vsockstream

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// TestPumpBurstThenDrain: 8 MiB, and the writer's exit at once.
func TestPumpBurstThenDrain(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		near, far := tr.pair(t)
		r, w := pipe(t)
		background, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 0) // a child keeps stdout open
		require.NoError(t, err)
		defer unix.Close(background)
		p := startAdjusted(t, PumpConfig{Dst: near, Src: r}, adjust)
		got := readAll(far)
		want := pattern(8 << 20)
		_, err = w.Write(want)
		require.NoError(t, err)
		w.Close()
		p.Drain(time.Now().Add(patience))
		await(t, p.Done(), "drain")
		require.NoError(t, p.Err())
		require.NoError(t, p.Close())
		require.Equal(t, want, await(t, got, "output"))
		_, err = unix.Write(background, []byte("x"))
		require.Equal(t, unix.EPIPE, err, "the pump must not keep its end of the pipe")
	})
}

// TestPumpDrainIdle: nothing in the pipe, a child holds it open: done at once.
func TestPumpDrainIdle(t *testing.T) {
	eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
		near, far := tr.pair(t)
		r, w := pipe(t)
		p := startAdjusted(t, PumpConfig{Dst: near, Src: r}, adjust)
		_, err := w.Write([]byte("last words"))
		require.NoError(t, err)
		p.Drain(time.Now().Add(time.Hour))
		await(t, p.Done(), "drain")
		require.NoError(t, p.Err())
		require.Equal(t, "last words", string(await(t, readAll(far), "output")))
	})
}

// TestPumpDrainBeforeStart: the exit was faster.
func TestPumpDrainBeforeStart(t *testing.T) {
	checkLeaks(t)
	near, far := socketPair(t)
	r, w := pipe(t)
	w.Write([]byte("early"))
	p, err := NewPump(PumpConfig{Dst: near, Src: r})
	require.NoError(t, err)
	defer p.Close()
	p.Drain(time.Time{})
	require.NoError(t, p.Start())
	await(t, p.Done(), "drain")
	require.NoError(t, p.Err())
	require.Equal(t, "early", string(await(t, readAll(far), "output")))
	require.ErrorIs(t, p.Start(), sys.ErrState)
}

// TestPumpDrainDeadline: the host does not read, and a child goes on writing.
func TestPumpDrainDeadline(t *testing.T) {
	for _, name := range []string{"stalled reader", "chatty writer"} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, tr transport, adjust func(*Pump)) {
				near, far := tr.pair(t)
				r, w := pipe(t)
				p := startAdjusted(t, PumpConfig{Dst: near, Src: r}, adjust)
				if name == "chatty writer" {
					go io.Copy(io.Discard, far)
				}
				wrote := make(chan error, 1)
				go func() {
					b := pattern(1 << 16)
					var err error
					for err == nil {
						_, err = w.Write(b)
					}
					wrote <- err
				}()
				if name == "stalled reader" {
					awaitStall(t, p)
				}
				start := time.Now()
				p.Drain(start.Add(100 * time.Millisecond))
				await(t, p.Done(), "drain")
				if name == "stalled reader" {
					require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond)
					require.ErrorIs(t, p.Err(), os.ErrDeadlineExceeded)
				}
				require.ErrorIs(t, await(t, wrote, "writer"), unix.EPIPE)
			})
		})
	}
}

// awaitStall waits until p has moved something and moves no more.
func awaitStall(t *testing.T, p *Pump) {
	t.Helper()
	last := int64(0)
	require.Eventually(t, func() bool {
		n := p.moved.Load()
		still := n > 0 && n == last
		last = n
		return still
	}, patience, 200*time.Millisecond)
}

// TestPumpDrainQuiet: the end of input was announced elsewhere while bytes are
// still under way, and the process takes its time.
func TestPumpDrainQuiet(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr transport) {
		near, far := tr.pair(t)
		r, w := pipe(t)
		p := startPump(t, PumpConfig{Dst: w, Src: near})
		const quiet = time.Second
		p.DrainQuiet(quiet, time.Time{})
		const part = 40 << 10 // all three fit into pipe and socket, not into the pipe alone
		want := pattern(3 * part)
		for i := range 3 {
			_, err := far.Write(want[i*part : (i+1)*part])
			require.NoError(t, err)
			time.Sleep(quiet / 20)
		}
		time.Sleep(quiet + quiet/10) // the pipe is full, which is not the source's quiet
		require.Equal(t, want, await(t, readAll(r), "input"))
		await(t, p.Done(), "drain")
		require.NoError(t, p.Err())
	})
}

// TestPumpDrainQuietLate: bytes that came in time count even if the pump gets
// to run only when the quiet time is over.
func TestPumpDrainQuietLate(t *testing.T) {
	checkLeaks(t)
	near, far := socketPair(t)
	r, w := pipe(t)
	p, err := NewPump(PumpConfig{Dst: w, Src: near})
	require.NoError(t, err)
	defer p.Close()
	p.DrainQuiet(time.Nanosecond, time.Time{})
	far.Write([]byte("in time"))
	require.NoError(t, p.Start())
	require.Equal(t, "in time", string(await(t, readAll(r), "input")))
	await(t, p.Done(), "drain")
	require.NoError(t, p.Err())

	// An idle source at the deadline has delivered everything, too.
	near, _ = socketPair(t)
	_, w = pipe(t)
	p = startPump(t, PumpConfig{Dst: w, Src: near})
	p.DrainQuiet(time.Hour, time.Now().Add(20*time.Millisecond))
	await(t, p.Done(), "drain")
	require.NoError(t, p.Err())
}
