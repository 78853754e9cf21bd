package sys

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// ReadInside reads a regular file below the directory root, no larger than
// limit. The path is resolved as if root were "/", absolute links too (openat2(2),
// Linux 5.6); resolve restricts it further. What it leads to is looked at before
// it is opened: to open a device or a fifo could do things or wait. Errors of the
// kernel's are bare errnos.
func ReadInside(root int, path string, limit int64, resolve uint64) ([]byte, error) {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return nil, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, Invalidf("it is not a regular file")
	case st.Size > limit:
		return nil, Invalidf("it is %d bytes long, more than the %d allowed", st.Size, limit)
	}
	file, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(file)
	data := make([]byte, st.Size)
	for n := 0; n < len(data); {
		m, err := unix.Read(file, data[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case m == 0: // it shrank meanwhile
			return data[:n], nil
		default:
			n += m
		}
	}
	return data, nil
}
