package vhostvsock

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func FuzzHeader(f *testing.F) {
	f.Add(make([]byte, headerSize))
	f.Fuzz(func(t *testing.T, in []byte) {
		var a, b [headerSize]byte
		copy(a[:], in)
		h := parseHeader(&a)
		h.encode(&b)
		require.Equal(t, a, b)
	})
}

// FuzzMessage decodes payloads of QEMU's messages: no result without sense.
func FuzzMessage(f *testing.F) {
	f.Add(uint32(reqSetMemTable), words64(1, 0, 4096, 0, 0))
	f.Add(uint32(reqSetVringAddr), append(words32(1, 0), words64(1, 2, 3, 4)...))
	f.Add(uint32(reqGetConfig), append(words32(0, 8, 0), make([]byte, 8)...))
	f.Fuzz(func(t *testing.T, req uint32, payload []byte) {
		m := message{request: request(req), payload: payload}
		if i, _, err := m.vringState(); err == nil {
			require.Less(t, i, numRings)
		}
		if i, _, err := m.vringAddr(); err == nil {
			require.Less(t, i, numRings)
		}
		if i, fd, err := m.vringFd(); err == nil {
			require.Less(t, i, numRings)
			require.Equal(t, -1, fd)
		}
		regions, err := m.memTable()
		require.LessOrEqual(t, len(regions), maxMessageFds)
		require.True(t, err == nil || regions == nil)
		reply, err := m.configReply(make([]byte, 8))
		require.True(t, (err == nil) == (reply != nil))
		require.LessOrEqual(t, len(reply), max(len(payload), 0))
	})
}

// FuzzChain walks descriptor chains in rings full of noise: what comes out is
// inside the guest's memory.
func FuzzChain(f *testing.F) {
	f.Add(words64(0x10000, 44|uint64(descNext)<<32|1<<48, 0x20000, 100), uint16(0), uint16(1), false)
	f.Fuzz(func(t *testing.T, descs []byte, head, avail uint16, writable bool) {
		s, v := fuzzSession(t)
		r := &s.rings[txRing]
		copy(r.desc, descs)
		binary.LittleEndian.PutUint16(r.avail[4:], head)
		binary.LittleEndian.PutUint16(r.avail[2:], avail)
		n, err := r.pending()
		if err != nil {
			require.Greater(t, avail, uint16(testRingSize))
			return
		}
		require.EqualValues(t, avail, n)
		vec, got, err := r.chain(s.mem, nil, 0, writable)
		require.LessOrEqual(t, len(vec), maxSegments+8)
		if err != nil {
			return
		}
		require.Equal(t, head, got)
		for _, p := range vec {
			require.NotEmpty(t, p)
			require.GreaterOrEqual(t, offsetIn(v.file, p), 0)
			require.LessOrEqual(t, offsetIn(v.file, p)+len(p), len(v.file))
		}
	})
}

// offsetIn returns where p starts in b, found by its distance from b's end.
func offsetIn(b, p []byte) int { return len(b) - cap(p[:len(p):cap(p)]) }

// The session that all inputs of a fuzzing process share, and its guest.
var (
	sharedSession *session
	sharedGuest   *testGuest
)

func fuzzSession(t *testing.T) (*session, *testGuest) {
	if sharedSession == nil {
		sharedSession, sharedGuest = newTestSession(outliving{t})
	}
	sharedGuest.t = t
	sharedSession.dropFlows()
	sharedGuest.reset(sharedSession)
	return sharedSession, sharedGuest
}

// outliving is a testing.TB whose cleanups never come.
type outliving struct{ testing.TB }

func (outliving) Cleanup(func()) {}
func (outliving) TempDir() string {
	dir, err := os.MkdirTemp("", "vsock")
	if err != nil {
		panic(err)
	}
	return dir
}

// FuzzGuest plays a guest and a host without manners against the loop: packets of
// all kinds, writes and closes at bad moments, rings overwritten.
func FuzzGuest(f *testing.F) {
	f.Add([]byte{0, 1, 5, 0, 9, 9, 6, 0, 5, 5, 1, 9, 9, 7, 0, 4, 5, 3, 0, 0, 7})
	f.Add([]byte{3, 7, 0, 2, 1, 0, 200, 0, 7, 1, 20, 7, 2, 0, 7, 0, 3, 1, 0, 0, 0, 7})
	f.Add([]byte{3, 3, 7, 5, 0, 12, 2, 7, 5, 33, 2, 255, 7})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 400 {
			return // what it may find is found in less, and the checks are slow
		}
		s, v := fuzzSession(t)
		p := &fuzzPlay{s: s, v: v, script: script}
		for len(p.script) > 0 {
			p.step()
			p.check(t)
		}
		for _, fd := range p.apps {
			_ = unix.Close(fd)
		}
		for p.settle(); s.dev.draining.Load() > 0; {
			unix.Nanosleep(&unix.Timespec{Nsec: 1e5}, nil)
		}
	})
}

// fuzzPlay turns bytes into events.
type fuzzPlay struct {
	s      *session
	v      *testGuest
	script []byte
	apps   []int // the host's ends
	dials  []*dialRequest
}

func (p *fuzzPlay) byte() byte {
	if len(p.script) == 0 {
		return 0
	}
	b := p.script[0]
	p.script = p.script[1:]
	return b
}

func (p *fuzzPlay) step() {
	switch what := p.byte(); what % 8 {
	case 0:
		p.packet()
	case 1:
		if app := p.app(); app >= 0 {
			_, _ = unix.SendmsgN(app, make([]byte, int(p.byte())*100), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
	case 2:
		if app := p.app(); app >= 0 {
			_ = unix.Shutdown(app, int(p.byte()%3))
		}
	case 3:
		if fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err == nil {
			p.apps = append(p.apps, fds[1])
			p.dials = append(p.dials, &dialRequest{port: uint32(p.byte() % 4), fd: fds[0], end: &endState{}, result: make(chan dialResult, 1)})
			p.s.obey([]command{{kind: cmdDial, dial: p.dials[len(p.dials)-1]}})
		}
	case 4: // more receive buffers
		idx := binary.LittleEndian.Uint16(p.v.file[0x802:])
		binary.LittleEndian.PutUint16(p.v.file[0x802:], idx+uint16(p.byte()%70))
	case 5: // noise in the rings
		p.v.file[(int(p.byte())<<8|int(p.byte()))%0x4000] = p.byte()
	case 6:
		for _, f := range p.s.flows {
			p.s.expire(f)
			break
		}
		if len(p.dials) > 0 {
			p.s.obey([]command{{kind: cmdCancel, dial: p.dials[int(p.byte())%len(p.dials)]}})
		}
	case 7:
		p.settle()
		if p.byte() == 255 {
			p.v.reset(p.s)
			p.s.dropFlows()
		}
	}
}

// app returns one of the host's ends, -1 if there is none.
func (p *fuzzPlay) app() int {
	if len(p.apps) == 0 {
		return -1
	}
	return p.apps[int(p.byte())%len(p.apps)]
}

// packet puts a packet into the tx ring, mostly of a connection that exists.
func (p *fuzzPlay) packet() {
	h := packet(op(p.byte()%9), uint32(p.byte()%4), 5)
	sel, n := p.byte(), int(p.byte())*64
	for key := range p.s.flows {
		if sel%4 == 0 {
			break
		}
		h.dstPort, h.srcPort = key.host, key.guest
		sel--
	}
	h.flags, h.length = uint32(sel>>6), uint32(n)
	h.bufAlloc, h.fwdCnt = uint32(p.byte())<<8, uint32(p.byte())<<6
	if sel&0x20 != 0 {
		h.length++
	}
	r := &p.s.rings[txRing]
	if !r.running() {
		return
	}
	slot := int(r.next % testRingSize)
	at := 0x80000 + slot*0x1000*4
	var b [headerSize]byte
	h.encode(&b)
	copy(p.v.file[at%(1<<20-0x10000):], b[:])
	copy(p.v.file[0x2000+16*slot:], words64(uint64(at%(1<<20-0x10000)), uint64(headerSize+n)))
	binary.LittleEndian.PutUint16(p.v.file[0x2804+2*slot:], uint16(slot))
	binary.LittleEndian.PutUint16(p.v.file[0x2802:], r.next+1)
	p.s.work()
}

// settle lets the loop handle what there is, a few rounds.
func (p *fuzzPlay) settle() {
	for range 4 {
		n, err := p.s.poll(true)
		require.NoError(p.v.t, err)
		for i := range p.s.events[:n] {
			if f := p.s.byID[eventID(&p.s.events[i])]; f != nil {
				p.s.flowEvent(f, p.s.events[i].Events)
			}
		}
		p.s.work()
	}
}

// check tests what must hold between events.
func (p *fuzzPlay) check(t *testing.T) {
	s := p.s
	open := 0
	for key, f := range s.flows {
		require.Equal(t, key, f.key)
		require.LessOrEqual(t, f.held.size, bufAlloc)
		if f.fd >= 0 {
			open++
			require.Same(t, f, s.byID[f.id])
		} else {
			require.Equal(t, flowClosing, f.state)
		}
		require.Equal(t, f.state == flowRequested, f.dial != nil)
		if s.rings[rxRing].running() && f.state != flowRequested {
			require.True(t, !f.hasWork() || f.queued, "work is forgotten: %+v", f)
		}
	}
	require.Len(t, s.byID, open)
	for f := s.ready.first; f != nil; f = f.next {
		require.Same(t, f, s.flows[f.key])
	}
	require.LessOrEqual(t, s.resets.len(), maxResets+len(p.dials)+maxFlows)
}
