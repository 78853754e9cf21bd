package vhostvsock

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestCredit(t *testing.T) {
	for _, c := range []struct{ sent, fwd, alloc, want uint32 }{
		{0, 0, 0, 0},
		{0, 0, 4096, 4096},
		{4096, 0, 4096, 0},
		{4096, 1, 4096, 1},
		{5000, 0, 4096, 0},                // the guest made its buffer smaller
		{0, 1, 4096, 0},                   // more consumed than sent
		{10, 1<<32 - 10, 4096, 4096 - 20}, // the counters wrap
		{0, 0, 1<<32 - 1, 1<<32 - 1},
	} {
		f := flow{sent: c.sent, peerFwd: c.fwd, peerAlloc: c.alloc}
		require.Equal(t, c.want, f.credit(), "%+v", c)
	}
}

func TestConsumed(t *testing.T) {
	f := flow{peerAlloc: 4096, forwarded: 1<<32 - 500, told: 1<<32 - 500}
	f.consumed(1024)
	require.Zero(t, f.owe)
	f.consumed(1)
	require.Equal(t, oweCredit, f.owe)
	require.EqualValues(t, 525, f.forwarded)
}

// TestSmallGuestBuffer: never more in flight than the guest has room for, and on
// again with every update.
func TestSmallGuestBuffer(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 4096)
	data := make([]byte, 100_000)
	_, err := io.ReadFull(stream(100_000), data)
	require.NoError(t, err)
	go func() { _, _ = c.Write(data) }()
	var got []byte
	for len(got) < len(data) {
		_, p := v.expect(opData)
		got = append(got, p...)
		require.LessOrEqual(t, uint32(len(got))-g.fwdCnt, uint32(4096))
		if uint32(len(got))-g.fwdCnt == 4096 {
			v.quiet()
			g.fwdCnt = uint32(len(got)) - 1000
			v.send(with(g, opCreditUpdate, 0), nil)
		} else if len(got)%4 == 0 {
			g.fwdCnt = uint32(len(got))
			v.send(with(g, opCreditUpdate, 0), nil)
		}
	}
	require.True(t, bytes.Equal(data, got))
}

// TestCreditUpdates: the guest learns that there is room again before its own
// buffer size is in flight.
func TestCreditUpdates(t *testing.T) {
	for _, alloc := range []uint32{4096, 256 << 10, 1 << 30} {
		v := newDriver(t, serveDevice(t))
		c, g := connect(v, alloc)
		go func() { _, _ = io.Copy(io.Discard, c) }()
		window := min(alloc, bufAlloc)
		sent, known := uint32(0), uint32(0)
		for sent < 8*window {
			n := min(window-(sent-known), 60_000)
			if n == 0 {
				h, _ := v.expect(opCreditUpdate)
				require.EqualValues(t, bufAlloc, h.bufAlloc)
				require.Greater(t, h.fwdCnt, known)
				known = h.fwdCnt
				continue
			}
			v.send(with(g, opData, 0), make([]byte, n))
			sent += n
		}
		v.close()
	}
}

func TestCreditRequest(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	_, g := connect(v, 4096)
	v.send(with(g, opData, 0), []byte("abc"))
	v.settle()
	v.send(with(g, opCreditRequest, 0), nil)
	h, _ := v.expect(opCreditUpdate)
	require.EqualValues(t, 3, h.fwdCnt)
}

// TestSlowReader: the guest is stopped at what was advertised, loses nothing, and
// is reset if it does not stop.
func TestSlowReader(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 1<<30)
	sent, known := uint32(0), uint32(0)
	piece := make([]byte, 50_000)
	in := stream(1 << 30)
	send := func(n uint32) {
		_, err := io.ReadFull(in, piece[:n])
		require.NoError(t, err)
		v.send(with(g, opData, 0), piece[:n])
		sent += n
	}
	for { // nobody reads: updates stop
		send(min(50_000, bufAlloc-(sent-known)))
		v.settle()
		for {
			h, _, ok := v.next(20 * time.Millisecond)
			if !ok {
				break
			}
			known = h.fwdCnt
		}
		if sent-known == bufAlloc {
			break
		}
	}
	got := make([]byte, sent)
	require.NoError(t, errOf(io.ReadFull(c, got)))
	want := make([]byte, sent)
	require.NoError(t, errOf(io.ReadFull(stream(1<<30), want)))
	require.True(t, bytes.Equal(want, got))
	for known != sent {
		h, _ := v.expect(opCreditUpdate)
		if h.fwdCnt == known {
			break
		}
		known = h.fwdCnt
		if sent-known < bufAlloc/4 {
			break
		}
	}

	for range 30 { // and now without regard for credit
		send(50_000)
	}
	for {
		h, _, ok := v.next(5 * time.Second)
		require.True(t, ok)
		if h.op == opReset {
			break
		}
	}
	_, err := io.Copy(io.Discard, c)
	require.ErrorIs(t, err, unix.ECONNRESET)
}

func TestHalfCloseByHost(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 100_000)
	require.NoError(t, errOf(c.Write([]byte("question"))))
	require.NoError(t, c.CloseWrite())
	_, p := v.expect(opData)
	require.Equal(t, "question", string(p))
	h, _ := v.expect(opShutdown)
	require.EqualValues(t, shutSend, h.flags)
	v.send(with(g, opData, 0), []byte("answer"))
	v.send(with(g, opShutdown, shutBoth), nil)
	v.expect(opReset)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "answer", string(b))
	v.quiet()
}

func TestHalfCloseByGuest(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 100_000)
	v.send(with(g, opData, 0), []byte("question"))
	v.send(with(g, opShutdown, shutSend), nil)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "question", string(b))
	require.NoError(t, errOf(c.Write([]byte("answer"))))
	_, p := v.expect(opData)
	require.Equal(t, "answer", string(p))
	require.NoError(t, c.Close())
	h, _ := v.expect(opShutdown)
	require.EqualValues(t, shutBoth, h.flags)
	v.send(with(g, opReset, 0), nil)
	v.quiet()
}

func TestHalfCloseBoth(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 100_000)
	require.NoError(t, c.CloseWrite())
	h, _ := v.expect(opShutdown)
	require.EqualValues(t, shutSend, h.flags)
	v.send(with(g, opData, 0), []byte("x"))
	v.send(with(g, opShutdown, shutSend), nil)
	h, _ = v.expect(opShutdown) // both ways are done: so is the connection
	require.EqualValues(t, shutBoth, h.flags)
	v.send(with(g, opReset, 0), nil)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "x", string(b))
}

// TestGuestStopsReceiving: the host's writes fail, what the guest sends still arrives.
func TestGuestStopsReceiving(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 100_000)
	v.send(with(g, opShutdown, shutReceive), nil)
	v.send(with(g, opData, 0), []byte("x"))
	require.NoError(t, errOf(io.ReadFull(c, make([]byte, 1))))
	require.ErrorIs(t, errOf(c.Write([]byte("y"))), unix.EPIPE)
	require.NoError(t, c.Close())
	h, _ := v.expect(opShutdown)
	require.EqualValues(t, shutBoth, h.flags)
}

// TestHostStopsReceiving: the guest is told when it sends.
func TestHostStopsReceiving(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 100_000)
	require.NoError(t, c.CloseRead())
	v.send(with(g, opData, 0), []byte("x"))
	h, _ := v.expect(opShutdown)
	require.EqualValues(t, shutReceive, h.flags)
	require.NoError(t, errOf(c.Write([]byte("y"))))
	v.expect(opData)
	require.NoError(t, c.Close())
	h, _ = v.expect(opShutdown)
	require.EqualValues(t, shutBoth, h.flags)
}

// TestCloseByHost: data written before the close arrives first; late data of the
// guest is swallowed; its RST is not answered, its SHUTDOWN is.
func TestCloseByHost(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	for _, last := range []op{opReset, opShutdown} {
		c, g := connect(v, 5)
		require.NoError(t, errOf(c.Write([]byte("12345678"))))
		require.NoError(t, c.Close())
		_, p := v.expect(opData)
		require.Equal(t, "12345", string(p))
		v.quiet()
		g.fwdCnt = 5
		v.send(with(g, opCreditUpdate, 0), nil)
		_, p = v.expect(opData)
		require.Equal(t, "678", string(p))
		h, _ := v.expect(opShutdown)
		require.EqualValues(t, shutBoth, h.flags)
		v.send(with(g, opData, 0), []byte("late"))
		v.quiet()
		v.send(with(g, last, shutBoth), nil)
		if last == opShutdown {
			v.expect(opReset)
		}
		v.quiet()
	}
}

// TestCloseByHostUnread: closing with unread data is a close as well.
func TestCloseByHostUnread(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 1000)
	v.send(with(g, opData, 0), []byte("x"))
	v.settle()
	require.NoError(t, errOf(c.Write([]byte("y"))))
	require.NoError(t, c.Close())
	_, p := v.expect(opData)
	require.Equal(t, "y", string(p))
	h, _ := v.expect(opShutdown)
	require.EqualValues(t, shutBoth, h.flags)
}

// TestCloseByGuest: answered at once although the reader is slow, who gets it all,
// and end of file although data of the host was lost.
func TestCloseByGuest(t *testing.T) {
	d := serveDevice(t)
	v := newDriver(t, d)
	c, g := connect(v, 0)
	require.NoError(t, errOf(c.Write([]byte("never read"))))
	sent := 0
	for range 6 { // more than the socket pair takes
		v.send(with(g, opData, 0), bytes.Repeat([]byte{1}, 60_000))
		sent += 60_000
		v.settle()
		for {
			if _, _, ok := v.next(20 * time.Millisecond); !ok {
				break
			}
		}
	}
	v.send(with(g, opShutdown, shutBoth), nil)
	v.expect(opReset)
	v.close()
	require.EqualValues(t, 1, d.draining.Load())
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Len(t, b, sent)
	require.Eventually(t, func() bool { return d.draining.Load() == 0 }, 5*time.Second, time.Millisecond)
}

func TestResetByGuest(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 1000)
	v.send(with(g, opData, 0), []byte("x"))
	v.send(with(g, opReset, 0), nil)
	b, err := io.ReadAll(c)
	require.ErrorIs(t, err, unix.ECONNRESET)
	require.Equal(t, "x", string(b))
	require.ErrorIs(t, errOf(c.Write([]byte("y"))), unix.EPIPE)
	v.quiet()

	c, g = connect(v, 1000) // after its end of data it is no loss
	v.send(with(g, opShutdown, shutSend), nil)
	v.send(with(g, opReset, 0), nil)
	_, err = io.ReadAll(c)
	require.NoError(t, err)
}

// TestCloseTimeout: a guest that does not answer, or does not read, is given up.
func TestCloseTimeout(t *testing.T) {
	s, v := newTestSession(t)
	for _, unread := range []bool{false, true} {
		f := v.open(s)
		if unread {
			f.peerAlloc = 1
			require.NoError(t, errOf(v.app.Write([]byte("123"))))
		}
		require.NoError(t, v.app.Close())
		s.flowEvent(f, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP)
		require.NotNil(t, f.timer)
		s.work()
		s.expire(f)
		if unread {
			require.Len(t, s.flows, 1, "one byte went through: it gets more time")
			s.expire(f)
		}
		require.Empty(t, s.flows)
		require.Empty(t, s.byID)
		require.Equal(t, -1, f.fd)
		require.Equal(t, 1, s.resets.len())
		s.work()
		s.expire(f) // a timer that came late
		require.Zero(t, s.resets.len())
	}
}

func TestBacklog(t *testing.T) {
	var b backlog
	want, _ := io.ReadAll(stream(300_000))
	var got []byte
	for at, n := 0, 1; at < len(want); n = n*3%70_001 + 1 {
		n = min(n, len(want)-at)
		b.append([][]byte{want[at : at+n/2], want[at+n/2 : at+n]})
		at += n
		take := n * 2 / 3
		for _, p := range b.pieces(nil) {
			p = p[:min(take, len(p))]
			got = append(got, p...)
			take -= len(p)
		}
		b.discard(n * 2 / 3)
		require.Equal(t, at-len(got), b.size)
		require.LessOrEqual(t, len(b.chunks), b.size/chunkSize+2)
	}
	for _, p := range b.pieces(nil) {
		got = append(got, p...)
	}
	b.discard(b.size)
	require.True(t, bytes.Equal(want, got))
	require.Equal(t, backlog{}, b)
}

func TestPieces(t *testing.T) {
	for skipped := range 8 {
		for limit := 1; limit <= 7-skipped; limit++ {
			vec := [][]byte{[]byte("a"), []byte("bcd"), []byte("efg")}
			vec = truncate(skip(vec, skipped), limit)
			require.Equal(t, limit, total(vec))
			b := make([]byte, 10)
			require.Equal(t, limit, gather(b, vec))
			require.Equal(t, "abcdefg"[skipped:skipped+limit], string(b[:limit]))
			require.Equal(t, limit, scatter(vec, []byte("1234567890")))
			gather(b, vec)
			require.Equal(t, "1234567890"[:limit], string(b[:limit]))
		}
	}
}

func TestLists(t *testing.T) {
	var l flowList
	f := []*flow{{}, {}, {}, {}}
	for _, x := range f {
		l.push(x)
		l.push(x)
	}
	l.remove(f[1])
	l.remove(f[3])
	l.remove(f[3])
	l.push(f[1])
	for _, want := range []*flow{f[0], f[2], f[1]} {
		require.Same(t, want, l.first)
		l.remove(want)
	}
	require.True(t, l.empty())
	require.Nil(t, l.last)

	var q queue[int]
	in, out := 0, 0
	for range 1000 {
		for range in%7 + 1 {
			q.push(in)
			in++
		}
		for q.len() > 3 {
			require.Equal(t, out, q.pop())
			out++
		}
	}
	require.Equal(t, in-out, q.len())
	require.Less(t, cap(q.items), 100)
}
