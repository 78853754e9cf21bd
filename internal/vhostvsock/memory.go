package vhostvsock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// memRegion is one entry of SET_MEM_TABLE: size bytes of guest memory, found at
// guestAddr by the guest, at userAddr by QEMU, and at fileOffset of the fd that
// came with the message.
type memRegion struct {
	guestAddr, size, userAddr, fileOffset uint64
}

// mappedRegion is a memRegion that this process can reach.
type mappedRegion struct {
	memRegion
	data    []byte // the size bytes of the region
	mapping []byte // what was mapped: data and the file before it
}

// memory is the guest's memory as the last SET_MEM_TABLE described it. Slices it
// hands out are valid until close.
type memory struct {
	regions []mappedRegion
}

// mapMemory maps the regions, one fd each. The fds stay the caller's.
func mapMemory(regions []memRegion, fds []int) (*memory, error) {
	if len(regions) != len(fds) {
		return nil, fmt.Errorf("memory table: %d regions but %d file descriptors", len(regions), len(fds))
	}
	m := &memory{}
	for i, r := range regions {
		mapped, err := mapRegion(r, fds[i])
		if err != nil {
			m.close()
			return nil, fmt.Errorf("memory region %d (guest address %#x, %d bytes): %w", i, r.guestAddr, r.size, err)
		}
		m.regions = append(m.regions, mapped)
	}
	return m, nil
}

// mapRegion maps the file from its start, because the offset need not be a
// multiple of the page size that the file uses.
func mapRegion(r memRegion, fd int) (mappedRegion, error) {
	end := r.fileOffset + r.size
	if r.size == 0 || end < r.size || r.guestAddr+r.size < r.size || r.userAddr+r.size < r.size {
		return mappedRegion{}, errors.New("empty, or wraps around the address space")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return mappedRegion{}, os.NewSyscallError("fstat", err)
	}
	if st.Size < 0 || end > uint64(st.Size) {
		return mappedRegion{}, fmt.Errorf("ends at byte %d of a file of %d bytes", end, st.Size)
	}
	// munmap(2) of huge pages wants whole ones; st_blksize is the page size there.
	page := uint64(max(int64(st.Blksize), int64(os.Getpagesize()))) // int32 on arm64
	length := (end + page - 1) / page * page
	if length < end || length > 1<<62 {
		return mappedRegion{}, fmt.Errorf("a mapping of %d bytes is too large", end)
	}
	mapping, err := unix.Mmap(fd, 0, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return mappedRegion{}, os.NewSyscallError("mmap", err)
	}
	// A core dump or a fork must not carry the guest's memory. Best effort.
	_ = unix.Madvise(mapping, unix.MADV_DONTDUMP)
	_ = unix.Madvise(mapping, unix.MADV_DONTFORK)
	return mappedRegion{memRegion: r, data: mapping[r.fileOffset:end:end], mapping: mapping}, nil
}

// close unmaps everything. Nothing that memory handed out may be used afterwards.
func (m *memory) close() {
	for _, r := range m.regions {
		if r.mapping != nil {
			_ = unix.Munmap(r.mapping)
		}
	}
	m.regions = nil
}

// appendGuest appends the n bytes at the guest physical address addr to vec, in as
// many pieces as there are regions below them.
func (m *memory) appendGuest(vec [][]byte, addr, n uint64) ([][]byte, error) {
	if addr+n < addr {
		return vec, fmt.Errorf("guest buffer at %#x of %d bytes wraps around", addr, n)
	}
	for n > 0 {
		piece := m.findGuest(addr)
		if piece == nil {
			return vec, fmt.Errorf("guest address %#x is not in the memory table", addr)
		}
		if uint64(len(piece)) > n {
			piece = piece[:n:n]
		}
		vec = append(vec, piece)
		addr += uint64(len(piece))
		n -= uint64(len(piece))
	}
	return vec, nil
}

// findGuest returns the memory from the guest physical address addr to the end of
// its region, nil if there is none.
func (m *memory) findGuest(addr uint64) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if addr >= r.guestAddr && addr-r.guestAddr < r.size {
			return r.data[addr-r.guestAddr:]
		}
	}
	return nil
}

// user returns the n bytes at QEMU's virtual address addr, which must be in one region.
func (m *memory) user(addr, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if addr < r.userAddr || addr-r.userAddr >= r.size {
			continue
		}
		off := addr - r.userAddr
		if n > r.size-off {
			return nil, fmt.Errorf("%d bytes at QEMU address %#x leave their memory region", n, addr)
		}
		return r.data[off : off+n : off+n], nil
	}
	return nil, fmt.Errorf("QEMU address %#x is not in the memory table", addr)
}
