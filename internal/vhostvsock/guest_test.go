package vhostvsock

import (
	"context"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestStrayPackets: what is not a packet of a connection is refused or ignored.
func TestStrayPackets(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	for what := op(0); what < 10; what++ {
		v.send(packet(what, 1, 2), nil)
		if what != opReset {
			h, _ := v.expect(opReset)
			require.Equal(t, header{
				srcCID: hostCID, dstCID: fakeCID, srcPort: 2, dstPort: 1, socketType: socketStream, op: opReset,
			}, h)
		}
	}
	h := packet(opRequest, 1, 2)
	h.socketType = 2 // SEQPACKET
	v.send(h, nil)
	h, _ = v.expect(opReset)
	require.EqualValues(t, 2, h.socketType)
	h = packet(opRequest, 1, 2)
	h.srcCID = 7
	v.send(h, nil)
	h = packet(opRequest, 1, 2)
	h.dstCID = 7
	v.send(h, nil)
	v.quiet()
}

// TestViolations: packets that do not fit their connection end it, and only it.
func TestViolations(t *testing.T) {
	v := newDriver(t, serveDevice(t))
	other, og := connect(v, 1000)
	for name, send := range map[string]func(g header){
		"request":    func(g header) { v.send(with(g, opRequest, 0), nil) },
		"response":   func(g header) { v.send(with(g, opResponse, 0), nil) },
		"unknown op": func(g header) { v.send(with(g, 77, 0), nil) },
		"no op":      func(g header) { v.send(with(g, 0, 0), nil) },
		"after its end": func(g header) {
			v.send(with(g, opShutdown, shutSend), nil)
			v.send(with(g, opData, 0), []byte("x"))
		},
		"longer than its chain": func(g header) {
			v.settle()
			h := with(g, opData, 0)
			h.length = 5000
			at := fakeTxAt
			h.encode((*[headerSize]byte)(v.mem[at:]))
			v.setDesc(txRing, 0, uint64(at), headerSize+4999, 0, 0)
			v.offer(txRing, 0)
		},
	} {
		c, g := connect(v, 1000)
		send(g)
		v.expect(opReset)
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err, name)
	}
	v.send(with(og, opData, 0), []byte("x"))
	require.NoError(t, errOf(other.Read(make([]byte, 1))))
	v.quiet()
}

// TestBadRings: nonsense in a ring stops the device until the guest resets it.
func TestBadRings(t *testing.T) {
	d := serveDevice(t)
	v := newDriver(t, d)
	jump := func(ring int, n uint16) {
		r := &v.rings[ring]
		r.avail += n
		store32(v.mem[r.availAt():], uint32(r.avail)<<16)
		signal(r.kick)
	}
	bad := func(ring int, addr uint64, n uint32, flags, next uint16) func() {
		return func() {
			v.setDesc(ring, 0, addr, n, flags, next)
			if ring == rxRing { // all buffers before the bad one are used up
				for i := uint16(1); i < fakeRingSize; i++ {
					v.setDesc(ring, i, addr, n, flags, next)
				}
			}
			v.offer(ring, 0)
			signal(v.rings[ring].kick)
		}
	}
	for name, spoil := range map[string]func(){
		"index jumps":         func() { jump(txRing, fakeRingSize+1) },
		"index goes back":     func() { jump(txRing, 1<<16-1) },
		"head out of range":   func() { v.offer(txRing, fakeRingSize) },
		"next out of range":   bad(txRing, fakeTxAt, 10, descNext, 1<<16-1),
		"loop":                bad(txRing, fakeTxAt, 10, descNext, 0),
		"loop of nothing":     bad(txRing, fakeTxAt, 0, descNext, 0),
		"indirect":            bad(txRing, fakeTxAt, 64, descIndirect, 0),
		"writable in tx":      bad(txRing, fakeTxAt, 64, descWrite, 0),
		"no such address":     bad(txRing, 1<<40, 64, 0, 0),
		"before the memory":   bad(txRing, 1<<64-fakeGuest, 64, 0, 0),
		"last byte outside":   bad(txRing, fakeMemory-63, 64, 0, 0),
		"address wraps":       bad(txRing, 1<<64-fakeGuest-32, 64, 0, 0),
		"readable in rx":      bad(rxRing, fakeRxAt, 4096, 0, 0),
		"rx too small":        bad(rxRing, fakeRxAt, headerSize-1, descWrite, 0),
		"rx no such address":  bad(rxRing, 1<<40, 4096, descWrite, 0),
		"rx out of range":     bad(rxRing, fakeRxAt, 1, descNext|descWrite, 999),
		"rx no data possible": bad(rxRing, fakeRxAt, headerSize, descWrite, 0),
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := connect(v, 1<<20)
			require.NoError(t, c.SetDeadline(time.Now().Add(5*time.Second)))
			spoil()
			go func() { // rx is looked at when there is something to send
				for range 200 {
					if _, err := c.Write(make([]byte, 4000)); err != nil {
						return
					}
				}
			}()
			_, err := c.Read(make([]byte, 1))
			require.ErrorIs(t, err, unix.ECONNRESET)
			_, err = d.Dial(context.Background(), 7)
			require.ErrorIs(t, err, unix.ENOTCONN)
			v.stopRings()
			v.startRings(0)
		})
	}
	connect(v, 1000)
}

// TestBadRingAddresses: the guest chose them, so QEMU is not to blame.
func TestBadRingAddresses(t *testing.T) {
	d := serveDevice(t)
	v := newDriver(t, d)
	for name, addrs := range map[string][]uint64{
		"nowhere":    {0, 0, 0},
		"wraps":      {1<<64 - 16, 1<<64 - 16, 1<<64 - 16},
		"misaligned": {fakeUser + 1, fakeUser + 0x1001, fakeUser + 0x801},
		"at the end": {fakeUser + fakeSplit - 16, fakeUser + fakeSplit - 16, fakeUser + fakeSplit - 16},
	} {
		v.stopRings()
		v.startRings(0)
		v.stopRings()
		v.tell(reqSetVringAddr, append(words32(txRing, 0), words64(addrs[0], addrs[1], addrs[2], 0)...))
		v.tell(reqSetVringKick, words64(txRing), v.rings[txRing].kick)
		v.tell(reqSetVringEnable, words32(txRing, 1))
		signal(v.rings[txRing].kick)
		_, err := d.Dial(context.Background(), 7)
		require.ErrorIs(t, err, unix.ENOTCONN, name)
	}
	v.stopRings()
	v.startRings(0)
	connect(v, 1000)
}

// TestScatteredBuffers: headers and payload cut at any place.
func TestScatteredBuffers(t *testing.T) {
	v := connectDriver(t, serveDevice(t))
	v.setMemTable()
	v.startRings(0)
	v.stopRings()
	// A receive buffer in pieces of 1, 2, 3... bytes, 64 pieces in all.
	v.startRingsWith(func() {
		at := uint64(fakeRxAt)
		for i := range uint16(64) {
			n := uint32(i) + 1
			flags := uint16(descWrite | descNext)
			if i == 63 {
				flags = descWrite
			}
			v.setDesc(rxRing, i, at, n, flags, i+1)
			at += uint64(n)
		}
		v.offer(rxRing, 0)
	})
	c, g := connect(v, 10_000)
	require.NoError(t, errOf(c.Write([]byte("0123456789"))))
	_, p := v.expect(opData)
	require.Equal(t, "0123456789", string(p))

	// A packet in pieces likewise.
	h := with(g, opData, 0)
	h.length = 100
	at := fakeTxAt
	v.settle()
	h.encode((*[headerSize]byte)(v.mem[at:]))
	for i := range h.length {
		v.mem[at+headerSize+int(i)] = byte(i)
	}
	left := headerSize + h.length
	for i := uint16(0); left > 0; i++ {
		n := min(uint32(i%5+1), left)
		left -= n
		flags := uint16(descNext)
		if left == 0 {
			flags = 0
		}
		v.setDesc(txRing, i, uint64(at), n, flags, i+1)
		at += int(n)
	}
	v.offer(txRing, 0)
	b := make([]byte, 100)
	require.NoError(t, errOf(readFull(c, b)))
	for i, x := range b {
		require.EqualValues(t, i, x)
	}
}

// startRingsWith is startRings with receive buffers of one's own.
func (v *driver) startRingsWith(offer func()) {
	for i := range v.rings {
		r := &v.rings[i]
		r.avail, r.seen = 0, 0
		clear(v.mem[r.base : r.base+0x2000])
	}
	offer()
	v.configureRings(0)
}

// TestResetFlood: a guest that never takes its answers is not read from any more,
// and goes on when it does.
func TestResetFlood(t *testing.T) {
	v := connectDriver(t, serveDevice(t))
	v.setMemTable()
	v.startRingsWith(func() {}) // no receive buffers
	const flood = maxResets + 3*fakeRingSize
	sent := 0
	stray := packet(opData, 1, 2)
	for ; sent < flood; sent++ {
		if v.trySendNow(stray) != nil {
			break
		}
	}
	require.Less(t, sent, flood, "the device takes packets without end")
	require.GreaterOrEqual(t, sent, maxResets)
	v.addReceiveBuffers(fakeRingSize)
	for range sent {
		v.expect(opReset)
	}
	v.quiet()
	connect(v, 1000)
}

// trySendNow sends a packet unless the device does not take it for a while.
func (v *driver) trySendNow(h header) error {
	slots := v.rings[txRing].avail - v.rings[txRing].seen
	if slots >= fakeTxSlots {
		if _, _, ok := v.used(txRing, 200*time.Millisecond); !ok {
			return unix.EAGAIN
		}
	}
	return v.trySend(h, nil)
}

// TestConnectionFlood: there is an end to connections too.
func TestConnectionFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("opens 8192 descriptors")
	}
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Cur < 2*maxFlows+200 {
		t.Skip("RLIMIT_NOFILE is too low")
	}
	d := serveDevice(t)
	v := newDriver(t, d)
	l, err := d.Listen(5)
	require.NoError(t, err)
	var conns []net.Conn
	for i := range uint32(maxFlows) {
		v.send(packet(opRequest, i, 5), nil)
		v.expect(opResponse)
		c, err := l.Accept()
		require.NoError(t, err)
		conns = append(conns, c)
	}
	v.send(packet(opRequest, maxFlows, 5), nil)
	v.expect(opReset)
	_, err = d.Dial(context.Background(), 7)
	require.ErrorIs(t, err, unix.EAGAIN)
	for _, c := range conns {
		require.NoError(t, c.Close())
		h, _ := v.expect(opShutdown)
		v.send(packet(opReset, h.dstPort, h.srcPort), nil)
	}
	v.settle()
	connect(v, 1000)
}

// TestPortsAgain: ports of a connection that the guest has forgotten.
func TestPortsAgain(t *testing.T) {
	d := serveDevice(t)
	v := newDriver(t, d)
	l, err := d.Listen(5)
	require.NoError(t, err)
	for range 3 {
		v.send(packet(opRequest, 9, 5), nil)
		v.expect(opResponse)
		c, err := l.Accept()
		require.NoError(t, err)
		require.NoError(t, c.Close())
		v.expect(opShutdown) // never answered
	}
}

func TestHeader(t *testing.T) {
	h := header{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	var b [headerSize]byte
	h.encode(&b)
	require.Equal(t, h, parseHeader(&b))
	require.EqualValues(t, 7, binary.LittleEndian.Uint16(b[30:]))
}
