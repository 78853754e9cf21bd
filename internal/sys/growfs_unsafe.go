package sys

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// GrowFSOption is the mount option that asks for a file system to be grown to
// the size of its device: systemd.mount(5).
const GrowFSOption = "x-systemd.growfs"

// ext4Resize is EXT4_IOC_RESIZE_FS of linux/ext4.h (Linux 3.3): to so many
// blocks, which does nothing if it has them.
const ext4Resize = 0x40086610

// GrowFS grows the mounted ext4 file system with the directory dir, on a
// descriptor of any kind, to the size of its block device. That takes
// CAP_SYS_RESOURCE.
func GrowFS(dir int) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("grow file system: %w", err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("grow file system: statfs: %w", err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return Unsupportedf("only ext4 can be grown (option %s)", GrowFSOption)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("grow file system: stat: %w", err)
	}
	size := fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Dev), unix.Minor(st.Dev))
	b, err := os.ReadFile(size)
	if err != nil {
		return fmt.Errorf("grow file system: %w", err)
	}
	sectors, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 55)
	if err != nil {
		return fmt.Errorf("grow file system: %s: %w", size, err)
	}
	blocks := sectors * 512 / uint64(fs.Bsize)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ext4Resize, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow file system to %d blocks: %w", blocks, errno)
	}
	return nil
}
