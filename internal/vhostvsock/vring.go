package vhostvsock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The indexes of the rings that reach a vhost-user backend (virtio 1.2, 5.10.2;
// the event queue, 2, stays with QEMU).
const (
	rxRing   = 0 // buffers the guest receives into
	txRing   = 1 // packets the guest sends
	numRings = 2
)

// maxRingSize is the largest split ring (virtio 1.2, 2.7).
const maxRingSize = 32768

// maxSegments bounds the pieces of one descriptor chain: IOV_MAX of readv(2).
const maxSegments = 1024

// Flags of split rings (virtio 1.2, 2.7.5, 2.7.6 and 2.7.8).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1
)

// ringAddrs are the parts of a ring in QEMU's address space.
type ringAddrs struct {
	desc, avail, used uint64
}

// vring is one split virtqueue seen from the device. The loop owns it.
type vring struct {
	num   uint32
	addrs ringAddrs
	next  uint16 // avail entry to take next; GET_VRING_BASE's answer
	saved uint16 // next as it was when the ring was last stopped

	// File descriptors owned by the ring, -1 for none.
	kick int // guest to us: eventfd, watched by the loop
	call int // us to guest: eventfd
	errs int // us to QEMU: eventfd, the ring is broken

	enabled bool // SET_VRING_ENABLE
	started bool // SET_VRING_KICK seen, the slices below are valid
	broken  bool // the guest wrote nonsense: ignored until it resets the device

	desc, avail, used []byte

	done     uint16 // used.idx, as far as we have written entries
	noNotify bool   // used.flags: we do not want kicks
	dirty    bool   // entries were published since the last interrupt
}

// running says whether the ring may be processed.
func (r *vring) running() bool { return r.started && r.enabled && !r.broken }

// start finds the ring in memory. The ring must have its size and addresses.
func (r *vring) start(m *memory) error {
	if r.num == 0 {
		return errors.New("ring has no size")
	}
	n := uint64(r.num)
	desc, err := m.user(r.addrs.desc, 16*n)
	if err != nil {
		return fmt.Errorf("descriptor table: %w", err)
	}
	avail, err := m.user(r.addrs.avail, 4+2*n)
	if err != nil {
		return fmt.Errorf("available ring: %w", err)
	}
	used, err := m.user(r.addrs.used, 4+8*n)
	if err != nil {
		return fmt.Errorf("used ring: %w", err)
	}
	if !aligned(desc, 16) || !aligned(avail, 2) || !aligned(used, 4) {
		return errors.New("ring is not aligned")
	}
	r.desc, r.avail, r.used = desc, avail, used
	r.done = load16(used[2:])
	r.started, r.dirty, r.noNotify = true, false, false
	r.publish() // the flags may say otherwise since the ring was stopped
	return nil
}

// stop forgets the memory of the ring and remembers where it was.
func (r *vring) stop() {
	r.started, r.broken, r.dirty = false, false, false
	r.desc, r.avail, r.used = nil, nil, nil
	r.saved = r.next
}

// closeFds closes what the ring owns.
func (r *vring) closeFds() {
	for _, fd := range []*int{&r.kick, &r.call, &r.errs} {
		replaceFd(fd, -1)
	}
}

// replaceFd puts fd into *p and closes what was there.
func replaceFd(p *int, fd int) {
	if *p >= 0 {
		_ = unix.Close(*p)
	}
	*p = fd
}

// pending returns how many chains the guest has made available and we have not taken.
func (r *vring) pending() (uint32, error) {
	n := uint32(load16(r.avail[2:]) - r.next)
	if n > r.num {
		return 0, fmt.Errorf("available index is %d ahead in a ring of %d", n, r.num)
	}
	return n, nil
}

// chain appends the pieces of the i-th pending chain to vec and returns its head.
// All descriptors must be writable by the device, or none. Does not take the chain.
func (r *vring) chain(m *memory, vec [][]byte, i uint32, writable bool) ([][]byte, uint16, error) {
	slot := uint32(r.next+uint16(i)) % r.num
	head := load16(r.avail[4+2*slot:])
	idx, base := head, len(vec)
	for count := uint32(0); ; count++ {
		if uint32(idx) >= r.num {
			return vec, 0, fmt.Errorf("descriptor %d of a ring of %d", idx, r.num)
		}
		if count >= r.num {
			return vec, 0, errors.New("descriptor chain has a loop")
		}
		var d [16]byte // copied once: the guest may change it meanwhile
		copy(d[:], r.desc[16*uint32(idx):])
		flags := binary.LittleEndian.Uint16(d[12:])
		if flags&descIndirect != 0 || flags&descWrite != 0 != writable {
			return vec, 0, fmt.Errorf("descriptor %d has flags %#x", idx, flags)
		}
		var err error
		vec, err = m.appendGuest(vec, binary.LittleEndian.Uint64(d[0:]), uint64(binary.LittleEndian.Uint32(d[8:])))
		if err != nil {
			return vec, 0, err
		}
		if len(vec)-base > maxSegments {
			return vec, 0, fmt.Errorf("descriptor chain has more than %d pieces", maxSegments)
		}
		if flags&descNext == 0 {
			return vec, head, nil
		}
		idx = binary.LittleEndian.Uint16(d[14:])
	}
}

// push takes the next pending chain and returns it to the guest with n bytes
// written. The guest sees it after publish.
func (r *vring) push(head uint16, n uint32) {
	e := r.used[4+8*(uint32(r.done)%r.num):]
	binary.LittleEndian.PutUint32(e, uint32(head))
	binary.LittleEndian.PutUint32(e[4:], n)
	r.done++
	r.next++
	r.dirty = true
}

// publish shows pushed entries and the wish for kicks to the guest: flags and
// index of the used ring are one word.
func (r *vring) publish() {
	w := uint32(r.done) << 16
	if r.noNotify {
		w |= usedNoNotify
	}
	store32(r.used, w)
}

// interrupt tells the guest about published entries, if there are any and it wants to know.
func (r *vring) interrupt() {
	if !r.dirty {
		return
	}
	r.dirty = false
	if load16(r.avail)&availNoInterrupt == 0 {
		signal(r.call)
	}
}

// suppressKicks tells the guest that we are looking anyway.
func (r *vring) suppressKicks() {
	if !r.noNotify {
		r.noNotify = true
		r.publish()
	}
}

// wantKicks asks for a kick when something becomes available. What became
// available before is not announced: look at pending again afterwards.
func (r *vring) wantKicks() {
	if r.noNotify {
		r.noNotify = false
		r.publish()
	}
}

// signal adds one to the eventfd fd; nothing if fd is -1.
func signal(fd int) {
	if fd >= 0 {
		one := [8]byte{1}
		_, _ = unix.Write(fd, one[:])
	}
}
