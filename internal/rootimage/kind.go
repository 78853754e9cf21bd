package rootimage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"vminit/internal/sys"
)

// What Kind tells. All but Dir are the names of file system types in mount(2).
const (
	Dir      = "dir"
	EROFS    = "erofs"
	Ext4     = "ext4" // ext2 and ext3 too, the same driver mounts them
	Squashfs = "squashfs"
	XFS      = "xfs"
	Btrfs    = "btrfs"
	ISO9660  = "iso9660"
)

// magics are where each file system has its mark.
var magics = []struct {
	kind   string
	offset int64
	bytes  string
}{
	{EROFS, superOffset, "\xe2\xe1\xf5\xe0"},
	{Ext4, 1024 + 56, "\x53\xef"},
	{Squashfs, 0, "hsqs"},
	{XFS, 0, "XFSB"},
	{Btrfs, 64<<10 + 64, "_BHRfS_M"},
	{ISO9660, 32<<10 + 1, "CD001"},
}

// foreign are files that people give by mistake, and what to do about them.
var foreign = []struct {
	offset      int64
	bytes, hint string
}{
	{0, "QFI\xfb", "a qcow2 disk image: convert it with qemu-img convert -O raw"},
	{0, "\x1f\x8b", "compressed with gzip: unpack it first"},
	{0, "\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"},
	{0, "\xfd7zXZ\x00", "compressed with xz: unpack it first"},
	{257, "ustar", "a tar archive: unpack it into a directory first"},
	{0, "070701", "a cpio archive: unpack it into a directory first"},
	{510, "\x55\xaa", "a disk with partitions: give the image of one file system"},
}

// Kind tells what the root file system at path is: a directory, or by its mark
// the file system in an image or a block device. Anything else is sys.ErrInvalid.
func Kind(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("root file system: %w", err)
	}
	if fi.IsDir() {
		return Dir, nil
	}
	if m := fi.Mode().Type(); m != 0 && m != os.ModeDevice {
		return "", sys.Invalidf("root file system %s: neither a directory nor an image", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("root file system: %w", err)
	}
	defer f.Close()
	kind, err := kindOf(f)
	if err != nil {
		return "", fmt.Errorf("root file system %s: %w", path, err)
	}
	return kind, nil
}

// kindOf looks for marks.
func kindOf(r io.ReaderAt) (string, error) {
	for _, m := range magics {
		found, err := has(r, m.offset, m.bytes)
		if err != nil {
			return "", err
		}
		if found {
			return m.kind, nil
		}
	}
	for _, m := range foreign {
		found, err := has(r, m.offset, m.bytes)
		if err != nil {
			return "", err
		}
		if found {
			return "", sys.Invalidf("%s", m.hint)
		}
	}
	return "", sys.Invalidf("no file system that is known (directory, EROFS, ext4, squashfs, XFS, Btrfs or ISO 9660)")
}

func has(r io.ReaderAt, offset int64, want string) (bool, error) {
	b := make([]byte, len(want))
	n, err := r.ReadAt(b, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return n == len(b) && bytes.Equal(b, []byte(want)), nil
}
