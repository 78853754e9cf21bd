package vhostvsock

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The layout of the fake guest's memory: one memfd, seen as two adjoining regions
// in guest physical space that are apart everywhere else.
const (
	fakeMemory   = 4 << 20
	fakeOffset   = 0x3000 // of the first region in the memfd
	fakeGuest    = 0x4000_0000
	fakeUser     = 0x7f00_0000_0000
	fakeSplit    = 2 << 20 // where the second region starts
	fakeUserGap  = 1 << 30 // between the regions in QEMU's space
	fakeRingSize = 128
	fakeCID      = 42

	fakeRxBuffer = 3732 // as Linux has it
	fakeRxAt     = 0x10000
	fakeTxAt     = 0x180000 // 64 KiB slots that cross fakeSplit
	fakeTxSize   = 72 << 10
	fakeTxSlots  = 16
)

// driver plays QEMU and the guest's driver for a Device.
type driver struct {
	t     testing.TB
	dev   *Device
	front *net.UnixConn
	memfd int
	file  []byte // the memfd
	mem   []byte // what the guest sees, from fakeGuest on
	rings [numRings]fakeRing
	txbuf int // next slot
}

// fakeRing is a split ring seen from the driver.
type fakeRing struct {
	base       int // offset in driver.mem
	kick, call int // eventfds
	avail      uint16
	seen       uint16 // used entries
}

func (r *fakeRing) availAt() int { return r.base + 16*fakeRingSize }
func (r *fakeRing) usedAt() int  { return r.availAt() + 4 + 2*fakeRingSize + 4&^3 }

// serveDevice runs a device until the test ends.
func serveDevice(t testing.TB) *Device {
	checkLeaks(t)
	dir, err := os.MkdirTemp("", "vsock")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := New(Config{SocketPath: dir + "/vs", GuestCID: fakeCID, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, d.Close())
		require.NoError(t, <-served)
	})
	return d
}

// newDriver connects to the device and starts the rings, with buffers in rx.
func newDriver(t testing.TB, d *Device) *driver {
	v := connectDriver(t, d)
	v.setMemTable()
	v.startRings(0)
	return v
}

// connectDriver connects and negotiates, but has no rings yet.
func connectDriver(t testing.TB, d *Device) *driver {
	v := &driver{t: t, dev: d}
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	require.NoError(t, unix.Ftruncate(fd, fakeOffset+fakeMemory))
	v.memfd = fd
	v.file, err = unix.Mmap(fd, 0, fakeOffset+fakeMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	v.mem = v.file[fakeOffset:]
	for i := range v.rings {
		r := &v.rings[i]
		r.base = i * 0x2000
		r.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		require.NoError(t, err)
		r.call, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		require.NoError(t, err)
	}
	conn, err := net.Dial("unix", d.cfg.SocketPath)
	require.NoError(t, err)
	v.front = conn.(*net.UnixConn)
	t.Cleanup(v.close)

	require.EqualValues(t, offeredFeatures, v.ask(reqGetFeatures, nil))
	require.EqualValues(t, offeredProtocol, v.ask(reqGetProtocolFeatures, nil))
	v.tell(reqSetProtocolFeatures, u64Reply(offeredProtocol))
	v.tell(reqSetOwner, nil)
	v.tell(reqSetFeatures, u64Reply(offeredFeatures))
	return v
}

func (v *driver) close() {
	if v.front == nil {
		return
	}
	_ = v.front.Close()
	v.front = nil
	_ = unix.Munmap(v.file)
	_ = unix.Close(v.memfd)
	for _, r := range v.rings {
		_ = unix.Close(r.kick)
		_ = unix.Close(r.call)
	}
}

func (v *driver) setMemTable() {
	v.tell(reqSetMemTable, words64(2,
		fakeGuest, fakeSplit, fakeUser, fakeOffset,
		fakeGuest+fakeSplit, fakeMemory-fakeSplit, fakeUser+fakeSplit+fakeUserGap, fakeOffset+fakeSplit), v.memfd, v.memfd)
}

// startRings does what QEMU does when the guest's driver starts, in its order.
// base is where the rings go on, 0 after a reset.
func (v *driver) startRings(base uint16) {
	for i := range v.rings {
		r := &v.rings[i]
		r.avail, r.seen = base, base
		clear(v.mem[r.base : r.base+0x2000])
		store32(v.mem[r.usedAt():], uint32(base)<<16)
		store32(v.mem[r.availAt():], uint32(base)<<16)
	}
	v.addReceiveBuffers(fakeRingSize)
	v.configureRings(base)
}

// configureRings tells the device about rings that are in memory.
func (v *driver) configureRings(base uint16) {
	for i := range v.rings {
		r := &v.rings[i]
		v.tell(reqSetVringNum, words32(uint32(i), fakeRingSize))
		v.tell(reqSetVringBase, words32(uint32(i), uint32(base)))
		v.tell(reqSetVringAddr, v.ringAddr(i))
		v.tell(reqSetVringKick, words64(uint64(i)), r.kick)
		v.tell(reqSetVringCall, words64(uint64(i)), r.call)
	}
	for i := range v.rings {
		v.tell(reqSetVringEnable, words32(uint32(i), 1))
	}
}

func (v *driver) ringAddr(i int) []byte {
	r := &v.rings[i]
	return append(words32(uint32(i), 0),
		words64(fakeUser+uint64(r.base), fakeUser+uint64(r.usedAt()), fakeUser+uint64(r.availAt()), 0)...)
}

// stopRings does what QEMU does when the guest pauses, resets or goes away.
func (v *driver) stopRings() (base uint16) {
	for i := range v.rings {
		v.tell(reqSetVringEnable, words32(uint32(i), 0))
	}
	for i := range v.rings {
		reply := v.ask(reqGetVringBase, words32(uint32(i), 0))
		base = uint16(reply >> 32)
	}
	return base
}

func words32(w ...uint32) (b []byte) {
	for _, v := range w {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func words64(w ...uint64) (b []byte) {
	for _, v := range w {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// post sends a message.
func (v *driver) post(req request, flags uint32, payload []byte, fds ...int) {
	v.t.Helper()
	b := append(words32(uint32(req), messageVersion|flags, uint32(len(payload))), payload...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := v.front.WriteMsgUnix(b, oob, nil)
	require.NoError(v.t, err)
}

// receive reads a reply.
func (v *driver) receive(req request) []byte {
	v.t.Helper()
	require.NoError(v.t, v.front.SetReadDeadline(time.Now().Add(10*time.Second)))
	head := make([]byte, messageHeader)
	_, err := readFull(v.front, head)
	require.NoError(v.t, err)
	require.EqualValues(v.t, req, binary.LittleEndian.Uint32(head))
	require.EqualValues(v.t, messageVersion|flagReply, binary.LittleEndian.Uint32(head[4:]))
	payload := make([]byte, binary.LittleEndian.Uint32(head[8:]))
	_, err = readFull(v.front, payload)
	require.NoError(v.t, err)
	return payload
}

// ask sends a message that has a reply of one number.
func (v *driver) ask(req request, payload []byte) uint64 {
	v.t.Helper()
	v.post(req, 0, payload)
	reply := v.receive(req)
	require.Len(v.t, reply, 8)
	return binary.LittleEndian.Uint64(reply)
}

// tell sends a message and waits until the device has acted on it.
func (v *driver) tell(req request, payload []byte, fds ...int) {
	v.t.Helper()
	v.post(req, flagNeedReply, payload, fds...)
	require.Zero(v.t, binary.LittleEndian.Uint64(v.receive(req)), "%d refused", req)
}

// setDesc writes a descriptor. addr counts from the start of the fake memory.
func (v *driver) setDesc(ring int, index uint16, addr uint64, length uint32, flags, next uint16) {
	b := v.mem[v.rings[ring].base+16*int(index):]
	binary.LittleEndian.PutUint64(b, fakeGuest+addr)
	binary.LittleEndian.PutUint32(b[8:], length)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// offer makes the chain at head available and kicks if the device wants it.
func (v *driver) offer(ring int, head uint16) {
	r := &v.rings[ring]
	binary.LittleEndian.PutUint16(v.mem[r.availAt()+4+2*int(r.avail%fakeRingSize):], head)
	r.avail++
	store32(v.mem[r.availAt():], uint32(r.avail)<<16)
	if load16(v.mem[r.usedAt():])&usedNoNotify == 0 {
		signal(r.kick)
	}
}

// used returns the next entry that the device has given back, after at most d.
func (v *driver) used(ring int, d time.Duration) (head uint16, n uint32, ok bool) {
	r := &v.rings[ring]
	deadline := time.Now().Add(d)
	for load16(v.mem[r.usedAt()+2:]) == r.seen {
		left := time.Until(deadline)
		if left <= 0 {
			return 0, 0, false
		}
		p := []unix.PollFd{{Fd: int32(r.call), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, int(left/time.Millisecond)+1)
		var b [8]byte
		_, _ = unix.Read(r.call, b[:])
	}
	e := v.mem[r.usedAt()+4+8*int(r.seen%fakeRingSize):]
	r.seen++
	return uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:]), true
}

func (v *driver) rxAddr(i uint16) int { return fakeRxAt + int(i)*0x1000 }

// addReceiveBuffers makes the first n buffers of the rx ring available.
func (v *driver) addReceiveBuffers(n int) {
	for i := range uint16(n) {
		v.setDesc(rxRing, i, uint64(v.rxAddr(i)), fakeRxBuffer, descWrite, 0)
		v.offer(rxRing, i)
	}
}

// next returns the next packet from the device and gives its buffer back.
func (v *driver) next(d time.Duration) (h header, payload []byte, ok bool) {
	head, n, ok := v.used(rxRing, d)
	if !ok {
		return h, nil, false
	}
	b := v.mem[v.rxAddr(head):][:n]
	h = parseHeader((*[headerSize]byte)(b))
	payload = append([]byte(nil), b[headerSize:]...)
	v.offer(rxRing, head)
	return h, payload, true
}

// expect returns the next packet, which must be a what.
func (v *driver) expect(what op) (header, []byte) {
	v.t.Helper()
	h, payload, ok := v.next(5 * time.Second)
	require.True(v.t, ok, "no packet, want op %d", what)
	require.Equal(v.t, what, h.op, "%v", h)
	require.EqualValues(v.t, hostCID, h.srcCID)
	require.EqualValues(v.t, fakeCID, h.dstCID)
	require.EqualValues(v.t, len(payload), h.length)
	return h, payload
}

// quiet fails if the device sends something.
func (v *driver) quiet() {
	v.t.Helper()
	h, _, ok := v.next(50 * time.Millisecond)
	require.False(v.t, ok, "unexpected packet %v", h)
}

// send sends a packet as Linux does: header and payload in a descriptor each.
func (v *driver) send(h header, payload []byte) {
	v.t.Helper()
	if err := v.trySend(h, payload); err != nil {
		v.t.Fatal(err)
	}
}

func (v *driver) trySend(h header, payload []byte) error {
	slot := v.txbuf % fakeTxSlots
	for v.rings[txRing].avail-v.rings[txRing].seen >= fakeTxSlots {
		if _, _, ok := v.used(txRing, 5*time.Second); !ok {
			return fmt.Errorf("device does not take packets")
		}
	}
	v.txbuf++
	h.length = uint32(len(payload))
	at := fakeTxAt + slot*fakeTxSize
	h.encode((*[headerSize]byte)(v.mem[at:]))
	copy(v.mem[at+headerSize:at+fakeTxSize], payload)
	d := uint16(2 * slot)
	if len(payload) == 0 {
		v.setDesc(txRing, d, uint64(at), headerSize, 0, 0)
	} else {
		v.setDesc(txRing, d, uint64(at), headerSize, descNext, d+1)
		v.setDesc(txRing, d+1, uint64(at)+headerSize, uint32(len(payload)), 0, 0)
	}
	v.offer(txRing, d)
	return nil
}

// settle waits until the device has taken everything that was sent.
func (v *driver) settle() {
	v.t.Helper()
	for v.rings[txRing].seen != v.rings[txRing].avail {
		_, _, ok := v.used(txRing, 5*time.Second)
		require.True(v.t, ok, "device does not take packets")
	}
}

// packet is a header from the guest with the usual buffer.
func packet(what op, guestPort, hostPort uint32) header {
	return header{
		srcCID: fakeCID, dstCID: hostCID, srcPort: guestPort, dstPort: hostPort,
		socketType: socketStream, op: what, bufAlloc: 256 << 10,
	}
}
