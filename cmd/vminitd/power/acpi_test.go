package power

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// attribute encodes one netlink attribute.
func attribute(t uint16, v []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, t)
	b = append(b, v...)
	return append(b, make([]byte, -len(v)&3)...)
}

func message(attributes ...[]byte) []byte {
	b := make([]byte, genlHeader)
	for _, a := range attributes {
		b = append(b, a...)
	}
	return b
}

// event is struct acpi_genl_event.
func event(class string) []byte {
	b := make([]byte, 44)
	copy(b, class)
	copy(b[20:], "LNXPWRBN:00")
	b[36] = 0x80
	return b
}

func TestIsPowerButton(t *testing.T) {
	require.True(t, isPowerButton(message(attribute(1, event("button/power")))))
	require.True(t, isPowerButton(message(attribute(9, []byte("?")), attribute(1, event("button/power")))))
	require.False(t, isPowerButton(message(attribute(1, event("button/sleep")))))
	require.False(t, isPowerButton(message(attribute(2, event("button/power")))))
	require.False(t, isPowerButton(message(attribute(1, []byte("button/power")))), "cut short")
	require.False(t, isPowerButton(nil))
}

func TestParseFamily(t *testing.T) {
	id := binary.NativeEndian.AppendUint32(nil, 42)
	group := func(name string) []byte { return append(attribute(1, []byte(name+"\x00")), attribute(2, id)...) }
	got, err := parseFamily(message(attribute(2, []byte("acpi_event\x00")),
		attribute(7|unix.NLA_F_NESTED, append(attribute(1, []byte("x")), attribute(2|unix.NLA_F_NESTED, group("acpi_mc_group"))...))))
	require.NoError(t, err)
	require.EqualValues(t, 42, got)
	got, err = parseFamily(message(attribute(7, attribute(1, group("other")))))
	require.NoError(t, err)
	require.Zero(t, got)
	_, err = parseFamily(nil)
	require.Error(t, err)

	refused := message()
	binary.NativeEndian.PutUint16(refused[4:], unix.NLMSG_ERROR)
	errno := func(e unix.Errno) []byte {
		binary.NativeEndian.PutUint32(refused[unix.NLMSG_HDRLEN:], uint32(-int32(e)))
		return refused
	}
	got, err = parseFamily(errno(unix.ENOENT))
	require.NoError(t, err, "a machine without ACPI")
	require.Zero(t, got)
	_, err = parseFamily(errno(unix.EPERM))
	require.ErrorIs(t, err, unix.EPERM)
}

// TestAskForFamily asks the kernel for a family that is always there.
func TestAskForFamily(t *testing.T) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Sendto(fd, familyRequest("nlctrl"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	buf := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	require.NoError(t, err)
	require.EqualValues(t, unix.GENL_ID_CTRL, binary.NativeEndian.Uint16(buf[4:]), "an error?")
	var name string
	attributes(buf[genlHeader:n], func(t uint16, v []byte) {
		if t == ctrlFamilyName {
			name = unix.ByteSliceToString(v)
		}
	})
	require.Equal(t, "nlctrl", name)
}

func FuzzNetlink(f *testing.F) {
	f.Add(message(attribute(1, event("button/power"))))
	f.Add(message(attribute(7, attribute(1, attribute(1, []byte("acpi_mc_group"))))))
	f.Fuzz(func(t *testing.T, b []byte) {
		isPowerButton(b)
		_, _ = parseFamily(b)
	})
}
