package rootimage

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// The on-disk format, little-endian. Source: fs/erofs/erofs_fs.h of kernel 5.4
// and Documentation/filesystems/erofs.rst.
const (
	blockSize   = 4096
	superOffset = 1024
	superSize   = 128
	magic       = 0xE0F5E1E2

	inodeSize  = 64 // the extended form, which has times and 32 bit ids
	slotSize   = 32 // an inode's number is its offset in units of this
	direntSize = 12

	xattrHeader = 12
	xattrEntry  = 4

	compatChecksum = 1 << 0 // kernel 5.5, ignored before
	compatMtime    = 1 << 1 // the time in the inode is mtime

	layoutPlain  = 0 // data in blocks
	layoutInline = 2 // the last, partial block follows the inode

	maxBlocks = 1<<32 - 1
	// maxXattrs is what a count of 16 bits, in units of 4 bytes, can say.
	maxXattrs = xattrHeader + (1<<16-2)*xattrEntry
)

// superblock is what differs between images.
type superblock struct {
	rootNID uint16
	inodes  uint64
	blocks  uint32
	uuid    [16]byte
}

// put writes the superblock without its checksum to b.
func (s *superblock) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = 12 // log2(blockSize)
	le.PutUint16(b[14:], s.rootNID)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	copy(b[48:64], s.uuid[:])
}

// put writes the inode to b.
func (n *node) put(b []byte) {
	le := binary.LittleEndian
	layout := uint16(layoutPlain)
	if n.tail > 0 {
		layout = layoutInline
	}
	le.PutUint16(b[0:], 1|layout<<1) // bit 0: extended
	if size := n.xattrSize(); size > 0 {
		le.PutUint16(b[2:], uint16((size-xattrHeader)/xattrEntry+1))
	}
	le.PutUint16(b[4:], uint16(n.mode))
	le.PutUint64(b[8:], uint64(n.size))
	switch n.kind() {
	case unix.S_IFCHR, unix.S_IFBLK:
		le.PutUint32(b[16:], n.minor&0xff|n.major<<8|(n.minor&^0xff)<<12) // new_encode_dev()
	default:
		le.PutUint32(b[16:], uint32(n.start))
	}
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime.Sec))
	le.PutUint32(b[40:], uint32(n.mtime.Nsec))
	le.PutUint32(b[44:], n.nlink)
}

// nid is the inode's number.
func (n *node) nid() uint64 { return uint64(n.offset / slotSize) }

// xattrPrefixes are the name spaces, by their number in an entry.
var xattrPrefixes = []struct {
	index  byte
	prefix string
	whole  bool // nothing follows the prefix
}{
	{1, "user.", false},
	{2, "system.posix_acl_access", true},
	{3, "system.posix_acl_default", true},
	{4, "trusted.", false},
	{6, "security.", false},
}

// splitXattr finds an attribute's name space; ok is false if there is none.
func splitXattr(name string) (index byte, suffix string, ok bool) {
	for _, p := range xattrPrefixes {
		if s, found := strings.CutPrefix(name, p.prefix); found && (s == "") == p.whole {
			return p.index, s, true
		}
	}
	return 0, "", false
}

// xattrSize is the size of the attributes with their header, 0 without any.
func (n *node) xattrSize() int64 {
	if len(n.xattrs) == 0 {
		return 0
	}
	size := int64(xattrHeader)
	for _, x := range n.xattrs {
		_, suffix, _ := splitXattr(x.name)
		size += roundUp(xattrEntry+int64(len(suffix)+len(x.value)), 4)
	}
	return size
}

// putXattrs writes the attributes to b.
func (n *node) putXattrs(b []byte) {
	at := int64(xattrHeader) // the header is all zero: nothing is shared
	for _, x := range n.xattrs {
		index, suffix, _ := splitXattr(x.name)
		e := b[at:]
		e[0], e[1] = byte(len(suffix)), index
		binary.LittleEndian.PutUint16(e[2:], uint16(len(x.value)))
		copy(e[xattrEntry:], suffix)
		copy(e[xattrEntry+len(suffix):], x.value)
		at += roundUp(xattrEntry+int64(len(suffix)+len(x.value)), 4)
	}
}

// dirBlocks splits a directory's entries into those of each block.
func dirBlocks(entries []entry) [][]entry {
	var blocks [][]entry
	start, used := 0, 0
	for i, e := range entries {
		need := direntSize + len(e.name)
		if used+need > blockSize {
			blocks = append(blocks, entries[start:i])
			start, used = i, 0
		}
		used += need
	}
	return append(blocks, entries[start:])
}

// dirSize is the size of a directory's data: whole blocks and what the last
// one needs.
func dirSize(entries []entry) int64 {
	blocks := dirBlocks(entries)
	size := int64(len(blocks)-1) * blockSize
	for _, e := range blocks[len(blocks)-1] {
		size += direntSize + int64(len(e.name))
	}
	return size
}

// dirData encodes a directory: in each block the fixed parts, then the names.
func dirData(entries []entry) []byte {
	data := make([]byte, dirSize(entries))
	for i, block := range dirBlocks(entries) {
		b := data[i*blockSize:]
		name := len(block) * direntSize
		for j, e := range block {
			d := b[j*direntSize:]
			binary.LittleEndian.PutUint64(d[0:], e.node.nid())
			binary.LittleEndian.PutUint16(d[8:], uint16(name))
			d[10] = fileType(e.node.kind())
			name += copy(b[name:], e.name)
		}
	}
	return data
}

// fileType is the type in a directory entry.
func fileType(kind uint32) byte {
	switch kind {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// roundUp rounds n up to a multiple of the power of two unit.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
