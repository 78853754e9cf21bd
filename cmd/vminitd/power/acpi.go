package power

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Button is the machine's ACPI power button, which is how a host asks for the
// end of a machine it knows nothing else about. The kernel (module button) tells
// of it by generic netlink; that needs no input device and no evdev.
type Button struct{ f *os.File }

// WatchButton subscribes to what ACPI tells; nil without an error on a machine
// that has none. The button's module may come later.
func WatchButton() (*Button, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("listen to ACPI: %w", err)
	}
	group, err := acpiGroup(fd)
	if err == nil && group != 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group))
	}
	if err == nil && group != 0 {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil || group == 0 {
		unix.Close(fd)
		if err != nil {
			err = fmt.Errorf("listen to ACPI: %w", err)
		}
		return nil, err
	}
	return &Button{os.NewFile(uintptr(fd), "ACPI events")}, nil
}

// Run calls pressed whenever the button is pressed, for as long as the process lives.
func (b *Button) Run(pressed func()) error {
	buf := make([]byte, 8192)
	for {
		n, err := b.f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // so many presses are one
			pressed()
		case err != nil:
			return fmt.Errorf("ACPI events: %w", err)
		case isPowerButton(buf[:n]):
			pressed()
		}
	}
}

// linux/genetlink.h, and drivers/acpi/event.c for the family of ACPI.
const (
	ctrlGetFamily  = 3
	ctrlFamilyName = 2
	ctrlGroups     = 7
	groupName      = 1
	groupID        = 2

	acpiFamily = "acpi_event"
	acpiMcast  = "acpi_mc_group"
	acpiEvent  = 1  // attribute: struct acpi_genl_event
	acpiClass  = 20 // length of its first field, device_class

	genlHeader = unix.NLMSG_HDRLEN + 4
)

// acpiGroup asks for the multicast group of the ACPI family; 0 means that the
// kernel has none.
func acpiGroup(fd int) (uint32, error) {
	if err := unix.Sendto(fd, familyRequest(acpiFamily), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buf := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return 0, err
	}
	return parseFamily(buf[:n])
}

// familyRequest is CTRL_CMD_GETFAMILY of a name.
func familyRequest(name string) []byte {
	name += "\x00"
	n := binary.NativeEndian
	b := n.AppendUint32(nil, uint32(genlHeader+4+(len(name)+3)&^3))
	b = n.AppendUint16(b, unix.GENL_ID_CTRL)
	b = n.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...)          // sequence, port
	b = append(b, ctrlGetFamily, 1, 0, 0)      // version 1
	b = n.AppendUint16(b, uint16(4+len(name))) // attribute: length, type
	b = n.AppendUint16(b, ctrlFamilyName)
	b = append(b, name...)
	return append(b, make([]byte, -len(name)&3)...)
}

// parseFamily finds the group in the answer to familyRequest.
func parseFamily(b []byte) (uint32, error) {
	n := binary.NativeEndian
	if len(b) < genlHeader {
		return 0, sys.Invalidf("answer of %d bytes", len(b))
	}
	if n.Uint16(b[4:]) == unix.NLMSG_ERROR {
		errno := unix.Errno(-int32(n.Uint32(b[unix.NLMSG_HDRLEN:])))
		if errno == unix.ENOENT {
			return 0, nil
		}
		return 0, errno
	}
	var group uint32
	attributes(b[genlHeader:], func(t uint16, groups []byte) {
		if t != ctrlGroups {
			return
		}
		attributes(groups, func(_ uint16, g []byte) {
			var id uint32
			var name string
			attributes(g, func(t uint16, v []byte) {
				switch {
				case t == groupName:
					name = unix.ByteSliceToString(v)
				case t == groupID && len(v) == 4:
					id = n.Uint32(v)
				}
			})
			if name == acpiMcast {
				group = id
			}
		})
	})
	return group, nil
}

// isPowerButton tells whether a message of the ACPI family is of the power
// button: "button/power" for both kinds of it.
func isPowerButton(b []byte) (is bool) {
	if len(b) < genlHeader {
		return false
	}
	attributes(b[genlHeader:], func(t uint16, v []byte) {
		is = is || t == acpiEvent && len(v) >= acpiClass && unix.ByteSliceToString(v[:acpiClass]) == "button/power"
	})
	return is
}

// attributes calls f for each netlink attribute in b, up to the first malformed one.
func attributes(b []byte, f func(t uint16, v []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}
