package vsockstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// serveHub runs a hub on a listener of its own and returns its address.
func serveHub(t testing.TB, tr transport, cfg HubConfig) (*Hub, string) {
	t.Helper()
	l, addr := tr.listen(t)
	h := NewHub(cfg)
	served := make(chan error, 1)
	go func() { served <- h.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		h.Close()
		require.NoError(t, await(t, served, "Serve"))
	})
	return h, addr
}

func openStream(t testing.TB, addr string, f Framing, id string) Conn {
	t.Helper()
	c := dial(t, addr)
	require.NoError(t, tryOpen(c, f, id))
	return c
}

func tryOpen(c Conn, f Framing, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return Open(ctx, c, f, id)
}

func claim(t testing.TB, h *Hub, id string) Conn {
	t.Helper()
	c, err := h.Claim(context.Background(), id)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func eachFraming(t *testing.T, fn func(t *testing.T, tr transport, f Framing)) {
	for _, f := range []Framing{FramingU32, FramingString} {
		t.Run(f.String(), func(t *testing.T) {
			eachTransport(t, func(t *testing.T, tr transport) { fn(t, tr, f) })
		})
	}
}

// TestHub: open then claim, claim then open, bytes sent before the claim.
func TestHub(t *testing.T) {
	eachFraming(t, func(t *testing.T, tr transport, f Framing) {
		h, addr := serveHub(t, tr, HubConfig{Framing: f})
		far := openStream(t, addr, f, "7")
		far.Write([]byte("early"))
		far.CloseWrite()
		near := claim(t, h, "7")
		require.Equal(t, "7", near.(*Stream).ID())
		require.Empty(t, near.(*Stream).TakeFDs())
		require.Equal(t, "early", string(await(t, readAll(near), "input")))
		near.Write([]byte("late"))
		near.Close()
		require.Equal(t, "late", string(await(t, readAll(far), "output")))

		claimed := make(chan Conn, 1)
		go func() { c, _ := h.Claim(context.Background(), "8"); claimed <- c }()
		time.Sleep(20 * time.Millisecond)
		openStream(t, addr, f, "8")
		near = await(t, claimed, "claim")
		require.NotNil(t, near)
		near.Close()
	})
}

// TestHubWire pins the bytes of both framings, as a host of its own would
// write and read them.
func TestHubWire(t *testing.T) {
	for _, c := range []struct {
		f            Framing
		id           string
		send, expect string
	}{
		{FramingU32, "258", "\x00\x00\x01\x02", "\x00\x00\x01\x02"},
		{FramingU32, "", "\x00\x00", ""},
		{FramingString, "ab", "\x00\x00\x00\x02ab", "\x00\x00\x00\x02ab"},
		{FramingString, "", "\x00\x00\x00\x00", "\x00\x00\x00\x12stream id is empty"},
		{FramingString, "", "\x7f\xff\xff\xff", "\x00\x00\x00\x35frame of 2147483647 bytes; at most 4096 are allowed"},
	} {
		t.Run(fmt.Sprintf("%v %q", c.f, c.send), func(t *testing.T) {
			checkLeaks(t)
			h, addr := serveHub(t, transport{}, HubConfig{Framing: c.f})
			far := dial(t, addr)
			far.SetDeadline(time.Now().Add(patience))
			io.WriteString(far, c.send)
			if c.id != "" {
				b := make([]byte, len(c.expect))
				_, err := io.ReadFull(far, b)
				require.NoError(t, err)
				require.Equal(t, c.expect, string(b))
				claim(t, h, c.id).Close()
				return
			}
			far.CloseWrite()
			b, _ := io.ReadAll(far)
			if len(c.expect) > 4 {
				require.Equal(t, c.expect[4:], string(b[4:]))
			} else {
				require.Empty(t, b)
			}
		})
	}
}

func TestHubDuplicates(t *testing.T) {
	eachFraming(t, func(t *testing.T, tr transport, f Framing) {
		h, addr := serveHub(t, tr, HubConfig{Framing: f})
		refused := func(why string) {
			t.Helper()
			c := dial(t, addr)
			err := tryOpen(c, f, "7")
			require.ErrorContains(t, err, "refused", why)
			require.ErrorContains(t, err, `"7"`, why)
			if f == FramingString {
				require.ErrorContains(t, err, "in use", why)
			}
			c.Close()
		}
		openStream(t, addr, f, "7")
		refused("unclaimed")
		near := claim(t, h, "7")
		refused("claimed")
		_, err := h.Claim(context.Background(), "7")
		require.ErrorIs(t, err, sys.ErrNotFound, "claimed ids are gone from the registry")
		require.ErrorContains(t, err, `"7"`)
		require.NoError(t, near.Close())
		require.NoError(t, near.Close())
		openStream(t, addr, f, "7")
		claim(t, h, "7").Close()
	})
}

// TestHubHostComesBack: an unclaimed stream whose peer is gone gives way.
func TestHubHostComesBack(t *testing.T) {
	eachFraming(t, func(t *testing.T, tr transport, f Framing) {
		h, addr := serveHub(t, tr, HubConfig{Framing: f})
		openStream(t, addr, f, "7").Close()
		var far Conn
		require.Eventually(t, func() bool {
			far = dial(t, addr)
			return tryOpen(far, f, "7") == nil
		}, patience, 5*time.Millisecond)
		far.Write([]byte("second"))
		far.CloseWrite()
		require.Equal(t, "second", string(await(t, readAll(claim(t, h, "7")), "input")))

		half := openStream(t, addr, f, "8")
		half.Write([]byte("all my input"))
		half.CloseWrite()
		require.Error(t, tryOpen(dial(t, addr), f, "8"), "a half-closed stream is alive")
		require.Equal(t, "all my input", string(await(t, readAll(claim(t, h, "8")), "input")))
	})
}

func TestClaimErrors(t *testing.T) {
	checkLeaks(t)
	h, _ := serveHub(t, transport{}, HubConfig{ClaimTimeout: 20 * time.Millisecond})
	for _, id := range []string{"", "07", "x", "4294967296"} {
		_, err := h.Claim(context.Background(), id)
		require.ErrorIs(t, err, sys.ErrInvalid, id)
	}
	_, err := h.Claim(context.Background(), "42")
	require.ErrorIs(t, err, sys.ErrNotFound)
	require.ErrorContains(t, err, `"42"`)

	h.cfg.ClaimTimeout = time.Hour
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { _, err := h.Claim(ctx, "42"); ended <- err }()
	require.Eventually(t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.waiters) == 1
	}, patience, time.Millisecond)
	_, err = h.Claim(context.Background(), "42")
	require.ErrorIs(t, err, sys.ErrState, "two claims of one id")
	cancel()
	require.ErrorIs(t, await(t, ended, "claim"), context.Canceled)
	require.Empty(t, h.waiters)

	go func() { _, err := h.Claim(context.Background(), "43"); ended <- err }()
	time.Sleep(10 * time.Millisecond)
	h.Close()
	require.ErrorIs(t, await(t, ended, "claim"), sys.ErrState)
}

func TestHubUnclaimed(t *testing.T) {
	checkLeaks(t)
	h, addr := serveHub(t, transport{}, HubConfig{UnclaimedTimeout: 50 * time.Millisecond, ClaimTimeout: time.Millisecond, MaxUnclaimed: 2})
	far := openStream(t, addr, FramingU32, "1")
	openStream(t, addr, FramingU32, "2")
	require.Error(t, tryOpen(dial(t, addr), FramingU32, "3"), "no more than MaxUnclaimed")
	require.Empty(t, await(t, readAll(far), "drop of an unclaimed stream"))
	require.Eventually(t, func() bool { _, n, _ := h.Stats(); return n == 0 }, patience, time.Millisecond)
	_, err := h.Claim(context.Background(), "1")
	require.ErrorIs(t, err, sys.ErrNotFound)

	openStream(t, addr, FramingU32, "1")
	near := claim(t, h, "1")
	time.Sleep(100 * time.Millisecond)
	_, err = near.Write([]byte("x"))
	require.NoError(t, err, "a claimed stream does not expire")
	near.Close()
}

// TestHubSilentPeers: those who connect and say nothing stop nobody, even when
// they are as many as there may be handshakes; and they end by the deadline.
func TestHubSilentPeers(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr transport) {
		h, addr := serveHub(t, tr, HubConfig{MaxHandshakes: 4, HandshakeTimeout: 5 * time.Second})
		for range 6 {
			c := dial(t, addr)
			c.Write([]byte("\x00"))
		}
		start := time.Now()
		openStream(t, addr, FramingU32, "1")
		claim(t, h, "1").Close()
		require.Less(t, time.Since(start), 4*time.Second, "the silent were waited for")
		require.Eventually(t, func() bool { n, _, _ := h.Stats(); return n == 0 }, patience, 10*time.Millisecond)
	})
}

// TestHubThousand: a thousand streams, opened at once by hosts that connect
// first and speak later, all open at the same time.
func TestHubThousand(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr transport) {
		var limit unix.Rlimit
		require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		n := 1000
		if limit.Cur < 2200 {
			n = int(limit.Cur/2) - 50
		}
		h, addr := serveHub(t, tr, HubConfig{})
		far, near := make([]Conn, n), make([]Conn, n)
		defer func() {
			for _, c := range append(far, near...) {
				if c != nil {
					c.Close()
				}
			}
		}()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
				defer cancel()
				c, err := Dial(ctx, addr)
				if err != nil {
					t.Error(err)
					return
				}
				far[i] = c
				if err := Open(ctx, c, FramingU32, fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				c, err := h.Claim(context.Background(), fmt.Sprint(i))
				if err != nil {
					t.Error(err)
					return
				}
				near[i] = c
				c.Write(fmt.Appendf(nil, "%4d", i))
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		_, unclaimed, claimed := h.Stats()
		require.Zero(t, unclaimed)
		require.Equal(t, n, claimed)
		for i := range n {
			b := make([]byte, 4)
			far[i].SetReadDeadline(time.Now().Add(patience))
			_, err := io.ReadFull(far[i], b)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%4d", i), string(b))
			near[i].Close()
			far[i].Close()
		}
		_, _, claimed = h.Stats()
		require.Zero(t, claimed)
	})
}

// TestHubClose ends everything that is not claimed.
func TestHubClose(t *testing.T) {
	checkLeaks(t)
	h, addr := serveHub(t, transport{}, HubConfig{})
	silent := dial(t, addr)
	unclaimed := openStream(t, addr, FramingU32, "1")
	claimedFar := openStream(t, addr, FramingU32, "2")
	near := claim(t, h, "2")
	require.Eventually(t, func() bool { n, _, _ := h.Stats(); return n == 1 }, patience, time.Millisecond)
	require.NoError(t, h.Close())
	require.NoError(t, h.Close())
	require.Empty(t, await(t, readAll(silent), "silent peer"))
	require.Empty(t, await(t, readAll(unclaimed), "unclaimed stream"))
	near.Write([]byte("alive"))
	near.Close()
	require.Equal(t, "alive", string(await(t, readAll(claimedFar), "claimed stream")))
	l, err := net.Listen("unix", "")
	require.NoError(t, err)
	require.ErrorIs(t, h.Serve(context.Background(), l), sys.ErrState)
}

// TestServeEndsWithContext and closes its listener.
func TestServeEndsWithContext(t *testing.T) {
	checkLeaks(t)
	l, addr := transport{}.listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	h := NewHub(HubConfig{})
	defer h.Close()
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	openStream(t, addr, FramingU32, "1")
	cancel()
	require.NoError(t, await(t, served, "Serve"))
	_, err := Dial(context.Background(), addr)
	require.Error(t, err)
	claim(t, h, "1").Close()
}

func TestOpenErrors(t *testing.T) {
	checkLeaks(t)
	near, far := socketPair(t)
	require.ErrorIs(t, tryOpen(far, FramingU32, "007"), sys.ErrInvalid)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, Open(ctx, far, FramingU32, "7"), context.DeadlineExceeded)
	near, far = socketPair(t)
	near.Write([]byte("\x00\x00\x00\x08"))
	require.ErrorContains(t, tryOpen(far, FramingU32, "7"), "another id, 8")
	near.Write([]byte("\x00\x00\x00\x0eno room for it"))
	require.ErrorContains(t, tryOpen(far, FramingString, "c1"), "no room for it")
	near.Close()
	require.Error(t, tryOpen(far, FramingU32, "7"))
}

// TestHubDescriptor: a local client hands over a file in the stream's place.
func TestHubDescriptor(t *testing.T) {
	for _, f := range []Framing{FramingU32, FramingString} {
		checkLeaks(t)
		h, addr := serveHub(t, transport{}, HubConfig{Framing: f})
		r, w := pipe(t)
		far := dial(t, addr).(*net.UnixConn)
		require.NoError(t, control(w, func(fd int) error {
			return OpenWithFDs(context.Background(), far, f, "7", fd, fd)
		}))
		w.Close()
		near := claim(t, h, "7").(*Stream)
		fds := near.TakeFDs()
		require.Len(t, fds, 2)
		require.Empty(t, near.TakeFDs())
		for _, fd := range fds {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			require.NoError(t, err)
			require.NotZero(t, flags&unix.FD_CLOEXEC)
			unix.Write(fd, []byte("direct"))
			unix.Close(fd)
		}
		require.Equal(t, "directdirect", string(await(t, readAll(r), "pipe")))
		near.Close()

		// Not taken, and refused with the id: closed by the hub.
		r, w = pipe(t)
		far = dial(t, addr).(*net.UnixConn)
		require.NoError(t, control(w, func(fd int) error {
			return OpenWithFDs(context.Background(), far, f, "8", slices.Repeat([]int{fd}, MaxFDs)...)
		}))
		near = claim(t, h, "8").(*Stream)
		require.Len(t, near.fds, MaxFDs)
		far = dial(t, addr).(*net.UnixConn)
		require.NoError(t, control(w, func(fd int) error {
			require.Error(t, OpenWithFDs(context.Background(), far, f, "8", fd))
			return nil
		}))
		near.Close()

		// A client that goes before its stream is claimed takes them along.
		far = dial(t, addr).(*net.UnixConn)
		require.NoError(t, control(w, func(fd int) error {
			return OpenWithFDs(context.Background(), far, f, "9", fd)
		}))
		far.Close()
		w.Close()
		require.Empty(t, await(t, readAll(r), "pipe"))
	}
}

// TestHubRaces: many hosts, few ids, claims, closes, all at once. The race
// detector and the leak check are the judges.
func TestHubRaces(t *testing.T) {
	checkLeaks(t)
	h, addr := serveHub(t, transport{}, HubConfig{ClaimTimeout: 20 * time.Millisecond, UnclaimedTimeout: 5 * time.Millisecond, MaxHandshakes: 3})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 100 {
				c, err := Dial(context.Background(), addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				Open(context.Background(), c, FramingU32, fmt.Sprint((i+n)%5))
				c.Close()
			}
		})
		wg.Go(func() {
			for n := range 100 {
				if c, err := h.Claim(context.Background(), fmt.Sprint((i+n)%5)); err == nil {
					c.Close()
				}
			}
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool { a, b, c := h.Stats(); return a+b+c == 0 }, patience, time.Millisecond)
	require.Zero(t, h.waiting)
}
