package vhostvsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func readFull(r io.Reader, b []byte) (int, error) { return io.ReadFull(r, b) }

// dialed is the result of a Dial in the background.
type dialed struct {
	c   *Conn
	err error
}

func goDial(ctx context.Context, d *Device, port uint32) chan dialed {
	ch := make(chan dialed, 1)
	go func() {
		c, err := d.Dial(ctx, port)
		ch <- dialed{c, err}
	}()
	return ch
}

// connect dials port 7 of the guest, which accepts with a buffer of alloc bytes.
func connect(v *driver, alloc uint32) (c *Conn, fromGuest header) {
	v.t.Helper()
	ch := goDial(context.Background(), v.dev, 7)
	h, _ := v.expect(opRequest)
	require.EqualValues(v.t, 7, h.dstPort)
	fromGuest = packet(opResponse, h.dstPort, h.srcPort)
	fromGuest.bufAlloc = alloc
	v.send(fromGuest, nil)
	r := <-ch
	require.NoError(v.t, r.err)
	v.t.Cleanup(func() { r.c.Close() })
	require.NoError(v.t, r.c.SetDeadline(time.Now().Add(10*time.Second)))
	return r.c, fromGuest
}

func with(h header, what op, flags uint32) header {
	h.op, h.flags = what, flags
	return h
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, cfg := range []Config{
		{SocketPath: dir + "/s", GuestCID: 2},
		{SocketPath: dir + "/s", GuestCID: 1<<32 - 1},
		{SocketPath: "", GuestCID: 3},
		{SocketPath: dir + "/" + string(bytes.Repeat([]byte("x"), 110)), GuestCID: 3},
	} {
		_, err := New(cfg)
		require.ErrorIs(t, err, sys.ErrInvalid, "%+v", cfg)
	}
	_, err := New(Config{SocketPath: dir + "/none/s", GuestCID: 3})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSocketFile(t *testing.T) {
	path := t.TempDir() + "/s"
	d, err := New(Config{SocketPath: path, GuestCID: 3})
	require.NoError(t, err)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	_, err = New(Config{SocketPath: path, GuestCID: 3})
	require.ErrorIs(t, err, unix.EADDRINUSE, "a socket in use is not taken over")

	d.front.SetUnlinkOnClose(false)
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	d, err = New(Config{SocketPath: path, GuestCID: 3})
	require.NoError(t, err, "a stale socket is replaced")
	require.NoError(t, d.Close())
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorIs(t, d.Serve(context.Background()), sys.ErrState)

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = New(Config{SocketPath: path, GuestCID: 3})
	require.ErrorIs(t, err, unix.EADDRINUSE, "files are not replaced")
}

func TestServeEndsWithContext(t *testing.T) {
	d, err := New(Config{SocketPath: t.TempDir() + "/s", GuestCID: fakeCID})
	require.NoError(t, err)
	defer d.Close()
	for range 2 { // it can be served again
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- d.Serve(ctx) }()
		v := newDriver(t, d)
		c, _ := connect(v, 1000)
		require.ErrorIs(t, d.Serve(ctx), sys.ErrState)
		cancel()
		require.NoError(t, <-served)
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, unix.ECONNRESET)
		v.close()
	}
}

func TestConfig(t *testing.T) {
	v := connectDriver(t, serveDevice(t))
	v.post(reqGetConfig, 0, append(words32(0, 8, 0), make([]byte, 8)...))
	require.Equal(t, append(words32(0, 8, 0), words64(fakeCID)...), v.receive(reqGetConfig))
	v.post(reqGetConfig, 0, append(words32(4, 8, 0), make([]byte, 8)...))
	require.Equal(t, words32(4, 8, 0), v.receive(reqGetConfig))
	require.EqualValues(t, numRings, v.ask(reqGetQueueNum, nil))
	v.post(99, flagNeedReply, []byte("?"))
	require.NotZero(t, v.receive(99)[0], "unknown requests are refused, not fatal")
}

func TestDialNotUp(t *testing.T) {
	d := serveDevice(t)
	_, err := d.Dial(context.Background(), 7)
	require.ErrorIs(t, err, unix.ENOTCONN)
	v := connectDriver(t, d)
	_, err = d.Dial(context.Background(), 7)
	require.ErrorIs(t, err, unix.ENOTCONN)
	v.setMemTable()
	v.startRings(0)
	connect(v, 1000)
}

func TestDialRefused(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	for _, answer := range []op{opReset, opShutdown, opData} {
		ch := goDial(context.Background(), v.dev, 8)
		h, _ := v.expect(opRequest)
		v.send(packet(answer, h.dstPort, h.srcPort), nil)
		require.ErrorIs(t, (<-ch).err, unix.ECONNREFUSED)
		if answer != opReset {
			v.expect(opReset)
		}
	}
	v.quiet()
}

func TestDialContext(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	ctx, cancel := context.WithCancel(context.Background())
	ch := goDial(ctx, v.dev, 8)
	h, _ := v.expect(opRequest)
	cancel()
	require.ErrorIs(t, (<-ch).err, context.Canceled)
	r, _ := v.expect(opReset)
	require.Equal(t, h.srcPort, r.srcPort)
	v.send(packet(opResponse, h.dstPort, h.srcPort), nil) // too late
	v.expect(opReset)
	_, err := v.dev.Dial(ctx, 8)
	require.ErrorIs(t, err, context.Canceled)
}

func TestDialGuestGone(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	ch := goDial(context.Background(), v.dev, 8)
	v.expect(opRequest)
	v.close()
	require.ErrorIs(t, (<-ch).err, unix.ECONNRESET)
}

func TestAddresses(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 1000)
	require.Equal(t, Addr{hostCID, g.dstPort}, c.LocalAddr())
	require.Equal(t, "42:7", c.RemoteAddr().String())
	require.Equal(t, "vsock", c.RemoteAddr().Network())
}

func TestListen(t *testing.T) {
	d := serveDevice(t)
	l, err := d.Listen(5)
	require.NoError(t, err)
	_, err = d.Listen(5)
	require.ErrorIs(t, err, unix.EADDRINUSE)
	_, err = d.Listen(1<<32 - 1)
	require.ErrorIs(t, err, sys.ErrInvalid)

	v := newDriver(t, d)
	v.send(packet(opRequest, 1000, 6), nil)
	v.expect(opReset)
	v.send(packet(opRequest, 1000, 5), nil)
	v.expect(opResponse)
	v.send(packet(opData, 1000, 5), []byte("hello"))
	c, err := l.Accept()
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, Addr{fakeCID, 1000}, c.RemoteAddr())
	b := make([]byte, 5)
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
	_, err = c.Write([]byte("world"))
	require.NoError(t, err)
	_, p := v.expect(opData)
	require.Equal(t, "world", string(p))

	v.send(packet(opRequest, 1001, 5), nil) // waits for Accept
	v.expect(opResponse)
	accepted := make(chan error, 2)
	require.NoError(t, l.Close())
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	require.ErrorIs(t, <-accepted, net.ErrClosed)
	h, _ := v.expect(opShutdown)
	require.EqualValues(t, shutBoth, h.flags)
	v.send(packet(opRequest, 1002, 5), nil)
	v.expect(opReset)
	l, err = d.Listen(5)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = d.Listen(5)
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestListenBacklog(t *testing.T) {
	d := serveDevice(t)
	l, err := d.Listen(5)
	require.NoError(t, err)
	defer l.Close()
	v := newDriver(t, d)
	for i := range uint32(backlogLength) {
		v.send(packet(opRequest, 10000+i, 5), nil)
		v.expect(opResponse)
	}
	v.send(packet(opRequest, 1, 5), nil)
	v.expect(opReset)
}

// TestReconnect: QEMU goes, another comes.
func TestReconnect(t *testing.T) {
	d := serveDevice(t)
	v := newDriver(t, d)
	c, g := connect(v, 1000)
	v.send(with(g, opData, 0), []byte("last words"))
	v.settle()
	v.close()
	b, err := io.ReadAll(c)
	require.Equal(t, "last words", string(b))
	require.ErrorIs(t, err, unix.ECONNRESET)

	v = newDriver(t, d)
	c, g = connect(v, 1000)
	v.send(with(g, opData, 0), []byte("ping"))
	require.NoError(t, errOf(io.ReadFull(c, make([]byte, 4))))
}

func errOf(_ int, err error) error { return err }

// TestPauseAndReset: after a pause connections go on, after a reset they are gone.
func TestPauseAndReset(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 100_000)
	base := map[int]uint16{}
	for i := range v.rings {
		v.tell(reqSetVringEnable, words32(uint32(i), 0))
	}
	for i := range v.rings {
		base[i] = uint16(v.ask(reqGetVringBase, words32(uint32(i), 0)) >> 32)
	}
	_, err := v.dev.Dial(context.Background(), 7)
	require.ErrorIs(t, err, unix.ENOTCONN, "paused")
	require.NoError(t, errOf(c.Write([]byte("while paused"))))
	v.quiet()
	v.send(with(g, opData, 0), []byte("likewise"))
	v.setMemTable()
	for i := range v.rings {
		r := &v.rings[i]
		v.tell(reqSetVringNum, words32(uint32(i), fakeRingSize))
		v.tell(reqSetVringBase, words32(uint32(i), uint32(base[i])))
		v.tell(reqSetVringAddr, v.ringAddr(i))
		v.tell(reqSetVringKick, words64(uint64(i)), r.kick)
		v.tell(reqSetVringEnable, words32(uint32(i), 1))
	}
	_, p := v.expect(opData)
	require.Equal(t, "while paused", string(p))
	b := make([]byte, 8)
	require.NoError(t, errOf(io.ReadFull(c, b)))
	require.Equal(t, "likewise", string(b))

	v.stopRings()
	v.startRings(0)
	_, err = c.Read(b)
	require.ErrorIs(t, err, unix.ECONNRESET)
	connect(v, 1000)
}

// TestLastWords: what the guest sent just before its rings are stopped arrives.
func TestLastWords(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 1000)
	kick := v.rings[txRing].kick
	v.rings[txRing].kick = -1 // the kick never gets here
	v.send(with(g, opData, 0), []byte("bye"))
	v.send(with(g, opShutdown, shutBoth), nil)
	v.rings[txRing].kick = kick
	v.stopRings()
	v.close()
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "bye", string(b))
}

// TestMemoryChange: another table under running rings.
func TestMemoryChange(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	c, g := connect(v, 100_000)
	for range 3 {
		v.setMemTable()
		require.NoError(t, errOf(c.Write([]byte("to"))))
		_, p := v.expect(opData)
		require.Equal(t, "to", string(p))
		v.send(with(g, opData, 0), []byte("from"))
		require.NoError(t, errOf(io.ReadFull(c, make([]byte, 4))))
	}
	require.Equal(t, 3, countMaps(), "the test's mapping and the device's two")
	v.tell(reqSetMemTable, words64(0))
	require.Equal(t, 1, countMaps())
	_, err := v.dev.Dial(context.Background(), 7)
	require.ErrorIs(t, err, unix.ENOTCONN)
}

// TestMemoryVanishes: a file cut short under the mapping ends the session, not the process.
func TestMemoryVanishes(t *testing.T) {
	d := serveDevice(t)
	v := newDriver(t, d)
	c, _ := connect(v, 1000)
	require.NoError(t, unix.Ftruncate(v.memfd, 0))
	signal(v.rings[txRing].kick)
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, unix.ECONNRESET)
	v.close()
	connect(newDriver(t, d), 1000)
}

// TestBadFrontend: messages that make no sense end the session only.
func TestBadFrontend(t *testing.T) {
	d := serveDevice(t)
	for name, send := range map[string]func(v *driver){
		"too long":        func(v *driver) { _, _ = v.front.Write(words32(1, 1, 1<<20)) },
		"bad version":     func(v *driver) { _, _ = v.front.Write(words32(1, 2, 0)) },
		"no ring 2":       func(v *driver) { v.post(reqSetVringNum, 0, words32(2, 128)) },
		"size 0":          func(v *driver) { v.post(reqSetVringNum, 0, words32(0, 0)) },
		"size 3":          func(v *driver) { v.post(reqSetVringNum, 0, words32(0, 3)) },
		"size 65536":      func(v *driver) { v.post(reqSetVringNum, 0, words32(0, 65536)) },
		"short":           func(v *driver) { v.post(reqSetVringAddr, 0, words32(0, 0)) },
		"short features":  func(v *driver) { v.post(reqSetFeatures, 0, nil) },
		"no kick":         func(v *driver) { v.post(reqSetVringKick, 0, words64(0)) },
		"polling":         func(v *driver) { v.post(reqSetVringKick, 0, words64(vringNoFd)) },
		"kick is a file":  func(v *driver) { v.post(reqSetVringKick, 0, words64(0), v.memfd) },
		"nine fds":        func(v *driver) { v.post(reqSetOwner, 0, nil, v.memfd, 0, 0, 0, 0, 0, 0, 0, 0) },
		"regions, no fd":  func(v *driver) { v.post(reqSetMemTable, 0, words64(1, 0, 4096, 0, 0)) },
		"region too long": func(v *driver) { v.post(reqSetMemTable, 0, words64(1, 0, 1<<40, 0, 0), v.memfd) },
		"region wraps":    func(v *driver) { v.post(reqSetMemTable, 0, words64(1, 0, 1<<63, 1<<63, 1<<63), v.memfd) },
		"region is empty": func(v *driver) { v.post(reqSetMemTable, 0, words64(1, 0, 0, 0, 0), v.memfd) },
		"nine regions":    func(v *driver) { v.post(reqSetMemTable, 0, words64(9, 0, 0, 0, 0), v.memfd) },
		"not a file":      func(v *driver) { v.post(reqSetMemTable, 0, words64(1, 0, 4096, 0, 0), v.rings[0].kick) },
		"half a message":  func(v *driver) { _, _ = v.front.Write(words32(1)); _ = v.front.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			v := connectDriver(t, d)
			send(v)
			_ = v.front.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, err := v.front.Read(make([]byte, 1))
			require.True(t, errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET), "%v", err)
			v.close()
		})
	}
	connect(newDriver(t, d), 1000)
}

// TestNoDescriptors: a process that has used up its descriptors refuses connections
// and goes on.
func TestNoDescriptors(t *testing.T) {
	d := serveDevice(t)
	l, err := d.Listen(5)
	require.NoError(t, err)
	v := newDriver(t, d)
	old := unix.Rlimit{}
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	low := old
	low.Cur = 0
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	_, dialErr := d.Dial(context.Background(), 7)
	v.send(packet(opRequest, 1000, 5), nil)
	h, _, ok := v.next(5 * time.Second)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	require.ErrorIs(t, dialErr, unix.EMFILE)
	require.True(t, ok)
	require.Equal(t, opReset, h.op)

	v.send(packet(opRequest, 1000, 5), nil)
	v.expect(opResponse)
	c, err := l.Accept()
	require.NoError(t, err)
	require.NoError(t, c.Close())
	v.expect(opShutdown)
	connect(v, 1000)
}
