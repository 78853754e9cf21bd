package rootimage

import (
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxTail is the largest end of a file that is put behind its inode. Larger
// ones would leave more unused in the metadata than a block of their own does.
const maxTail = blockSize / 2

// layout gives every inode and every file's data its place: the superblock,
// then the inodes, then the data, each in the order of the tree.
func (t *tree) layout() error {
	at := int64(superOffset + superSize)
	for _, n := range t.nodes {
		if n.kind() == unix.S_IFDIR {
			n.size = dirSize(n.entries)
		}
		x := n.xattrSize()
		if x > maxXattrs {
			return sys.Invalidf("root image: %s: %d bytes of extended attributes are more than EROFS holds", n.path, x)
		}
		n.full, n.tail = split(n, x)
		at = place(at, inodeSize+x, n.tail)
		n.offset = at
		at = roundUp(at+inodeSize+x+n.tail, slotSize)
	}
	t.metaSize = roundUp(at, blockSize)
	block := t.metaSize / blockSize
	for _, n := range t.nodes {
		if n.full > 0 {
			n.start = block
			block += roundUp(n.full, blockSize) / blockSize
		}
		if n.kind() == unix.S_IFREG {
			t.dataSize += n.size
		}
	}
	t.blocks = block
	if block > maxBlocks {
		return sys.Invalidf("root image: %d blocks of 4 KiB are more than EROFS holds", block)
	}
	return nil
}

// split divides a file's data into what goes into blocks and what follows the
// inode.
func split(n *node, xattrs int64) (full, tail int64) {
	switch n.kind() {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
	default:
		return 0, 0
	}
	tail = n.size % blockSize
	if tail > maxTail || inodeSize+xattrs+tail > blockSize {
		tail = 0
	}
	return n.size - tail, tail
}

// place finds the next offset from at on for an inode: its head, or all of it
// if a tail follows, must not cross a block.
func place(at, head, tail int64) int64 {
	need := int64(inodeSize)
	if tail > 0 {
		need = head + tail
	}
	if at%blockSize+need > blockSize {
		return roundUp(at, blockSize)
	}
	return at
}
