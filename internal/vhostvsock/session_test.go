package vhostvsock

import (
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// testGuest is memory for a session that no goroutine runs.
type testGuest struct {
	t    testing.TB
	file []byte
	app  *net.UnixConn // of the last open
	port uint32
}

// newTestSession returns a session whose loop the test plays, with memory of 1 MiB
// at guest address 0 and QEMU address 0, both rings in its first pages, and receive
// buffers.
func newTestSession(t testing.TB) (*session, *testGuest) {
	checkLeaks(t)
	dir := t.TempDir()
	d, err := New(Config{SocketPath: dir + "/s", GuestCID: fakeCID})
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir)) // nobody connects, and fuzzing cleans nothing up
	t.Cleanup(func() { d.Close() })
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(pair[1]) })
	s, err := newSession(d, pair[0])
	require.NoError(t, err)
	t.Cleanup(s.close)

	const size = 1 << 20
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, size))
	s.mem, err = mapMemory([]memRegion{{size: size}}, []int{fd})
	require.NoError(t, err)
	v := &testGuest{t: t, file: s.mem.regions[0].data}
	v.reset(s)
	return s, v
}

const testRingSize = 64

// reset starts the rings afresh.
func (v *testGuest) reset(s *session) {
	clear(v.file[:0x4000])
	for i := range s.rings {
		r := &s.rings[i]
		base := uint64(0x2000 * i)
		r.stop()
		r.next, r.num, r.enabled = 0, testRingSize, true
		r.addrs = ringAddrs{desc: base, avail: base + 0x800, used: base + 0x1000}
		require.NoError(v.t, r.start(s.mem))
	}
	for i := range uint32(testRingSize) {
		copy(v.file[16*i:], words64(uint64(0x10000+0x1000*i), 0x1000|descWrite<<32))
		copy(v.file[0x804+2*i:], []byte{byte(i), 0})
	}
	v.file[0x802] = testRingSize
}

// open makes an open flow.
func (v *testGuest) open(s *session) *flow {
	fd, app, err := socketPair()
	require.NoError(v.t, err)
	v.t.Cleanup(func() { app.Close() })
	v.app = app
	v.port++
	f := s.addFlow(flowKey{5, v.port}, fd, &endState{})
	require.NoError(v.t, s.open(f))
	f.peerAlloc = 256 << 10
	return f
}
