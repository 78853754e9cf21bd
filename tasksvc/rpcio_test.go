package tasksvc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

// readRPC reads an output to its end, pausing after each piece.
func readRPC(o *rpcOutput, pause time.Duration) ([]byte, error) {
	r := o.reader()
	defer r.close()
	var all []byte
	for {
		data, eof, err := r.next(context.Background())
		all = append(all, data...)
		if err != nil || eof {
			return all, err
		}
		time.Sleep(pause)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{})
	rnd.Read(b)
	return b
}

// Every reader that is there from the beginning gets every byte, at any pace.
func TestRPCOutputReaders(t *testing.T) {
	o, w, err := newRPCOutput()
	require.NoError(t, err)
	want := randomBytes(5 << 20)
	type result struct {
		data []byte
		err  error
	}
	results := make(chan result)
	ready := o.reader() // holds everything until the others have begun
	for i := range 4 {
		go func() {
			data, err := readRPC(o, time.Duration(i)*100*time.Microsecond)
			results <- result{data, err}
		}()
	}
	require.Eventually(t, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.readers) == 5
	}, 10*time.Second, time.Millisecond)
	ready.close()
	go func() {
		for b := want; len(b) > 0; {
			n := min(1+rand.IntN(100_000), len(b))
			w.Write(b[:n])
			b = b[n:]
		}
		w.Close()
	}()
	for range 4 {
		r := <-results
		require.NoError(t, r.err)
		require.True(t, bytes.Equal(want, r.data), "%d bytes", len(r.data))
	}
	late, err := readRPC(o, 0)
	require.NoError(t, err)
	require.NotEmpty(t, late)
	require.LessOrEqual(t, len(late), rpcHistory)
	require.True(t, bytes.HasSuffix(want, late), "a late reader gets what is still there")
	again, err := readRPC(o, 0)
	require.NoError(t, err)
	require.Equal(t, late, again)
}

// Without a reader the writer waits, and memory is bounded; the first reader
// gets everything from the first byte.
func TestRPCOutputWaits(t *testing.T) {
	o, w, err := newRPCOutput()
	require.NoError(t, err)
	want := randomBytes(1 << 20)
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(want)
		written <- errors.Join(err, w.Close())
	}()
	time.Sleep(100 * time.Millisecond)
	o.mu.Lock()
	require.LessOrEqual(t, len(o.data), rpcHistory)
	require.GreaterOrEqual(t, len(o.data), rpcHistory-rpcChunk)
	require.LessOrEqual(t, cap(o.data), 2*rpcHistory)
	o.mu.Unlock()
	select {
	case err := <-written:
		t.Fatal("the writer did not wait: ", err)
	default:
	}
	got, err := readRPC(o, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.NoError(t, <-written)
}

// A reader that stops holds the others up for a while, not for ever, and is told.
func TestRPCOutputStuckReader(t *testing.T) {
	o, w, err := newRPCOutput()
	require.NoError(t, err)
	o.stall = 300 * time.Millisecond
	stuck := o.reader()
	want := randomBytes(1 << 20)
	go func() { w.Write(want); w.Close() }()
	began := time.Now()
	got, err := readRPC(o, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.Greater(t, time.Since(began), o.stall/2)
	_, _, err = stuck.next(context.Background())
	require.ErrorIs(t, err, sys.ErrState)
	require.ErrorContains(t, err, "this reader is too slow")
}

// After close nobody waits: what a reader that is there has not had yet it
// gets, the rest is dropped, and no goroutine stays.
func TestRPCOutputClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, reading := range []bool{false, true} {
		o, w, err := newRPCOutput()
		require.NoError(t, err)
		var r *rpcReader
		if reading {
			r = o.reader()
		}
		want := randomBytes(rpcHistory + rpcChunk + 1000)
		written := make(chan error, 1)
		go func() { _, err := w.Write(want); written <- err }()
		time.Sleep(50 * time.Millisecond)
		o.close()
		require.NoError(t, <-written)
		w.Close()
		if reading {
			var all []byte
			for eof := false; !eof; {
				var data []byte
				data, eof, err = r.next(context.Background())
				require.NoError(t, err)
				all = append(all, data...)
			}
			require.True(t, bytes.Equal(want, all), "%d of %d", len(all), len(want))
			r.close()
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "%d goroutines, were %d", runtime.NumGoroutine(), before)
	}
}

func TestRPCReaderGivesUp(t *testing.T) {
	o, w, err := newRPCOutput()
	require.NoError(t, err)
	defer w.Close()
	r := o.reader()
	defer r.close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, _, err = r.next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestRPCInput(t *testing.T) {
	in, r, err := newRPCInput()
	require.NoError(t, err)
	want := randomBytes(1 << 20)
	got := make(chan []byte, 1)
	go func() { data, _ := io.ReadAll(r); got <- data }()
	for b := want; len(b) > 0; b = b[min(len(b), 100_000):] {
		n, err := in.write(context.Background(), b[:min(len(b), 100_000)])
		require.NoError(t, err)
		require.Equal(t, min(len(b), 100_000), n)
	}
	require.NoError(t, in.Close())
	require.True(t, bytes.Equal(want, <-got))
	_, err = in.write(context.Background(), []byte("x"))
	require.ErrorIs(t, err, errStdinClosed)

	// Nobody reads: what fits is taken, the deadline counts, and so it does for
	// somebody who waits for his turn.
	in, r, err = newRPCInput()
	require.NoError(t, err)
	first, second := make(chan int, 1), make(chan error, 1)
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	go func() { n, _ := in.write(short(), want); first <- n }()
	go func() { time.Sleep(10 * time.Millisecond); _, err := in.write(short(), want); second <- err }()
	require.Positive(t, <-first)
	require.ErrorIs(t, <-second, context.DeadlineExceeded)
	r.Close()
	_, err = in.write(context.Background(), []byte("x"))
	require.ErrorIs(t, err, errStdinClosed)
	require.NoError(t, in.Close())
}

// An idle output holds no memory.
func TestRPCOutputIdle(t *testing.T) {
	o, w, err := newRPCOutput()
	require.NoError(t, err)
	_, err = w.Write([]byte("prompt$ "))
	require.NoError(t, err)
	r := o.reader()
	defer r.close()
	data, eof, err := r.next(context.Background())
	require.NoError(t, err)
	require.False(t, eof)
	require.Equal(t, "prompt$ ", string(data))
	o.mu.Lock()
	require.LessOrEqual(t, cap(o.data), 64)
	o.mu.Unlock()
	require.NoError(t, w.Close())
	_, eof, err = r.next(context.Background())
	require.NoError(t, err)
	require.True(t, eof)
}
