package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fallbackHostname is what a guest is called that no one has named.
const fallbackHostname = "vminit"

const maxHostname = 64 // __NEW_UTS_LEN, uname(2)

// SetHostname names the guest. asked, the hostname field of ip=, wins; then
// whatever the kernel has (hostname= on the command line, Linux 5.19); then
// /etc/hostname; then a name of our own.
func SetHostname(asked string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	file, err := readString("/etc/hostname")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read /etc/hostname: %w", err)
	}
	current := unix.ByteSliceToString(uts.Nodename[:])
	name := chooseHostname(asked, current, file)
	if name == current {
		return nil
	}
	return sethostname(name)
}

// AskedHostname is the name the host asks for: the field of ip=, or the parameter
// systemd.hostname=.
func AskedHostname(ip string, cmdline []Param) string {
	if all := Values(cmdline, "systemd.hostname"); ip == "" && len(all) > 0 {
		return all[len(all)-1]
	}
	return ip
}

// ReplaceFallbackHostname names a guest that has no name but our own.
func ReplaceFallbackHostname(name string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	if unix.ByteSliceToString(uts.Nodename[:]) != fallbackHostname || name == "" || len(name) > maxHostname {
		return nil
	}
	return sethostname(name)
}

func sethostname(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set hostname %q: %w", name, err)
	}
	return nil
}

func chooseHostname(asked, current, file string) string {
	if current == "(none)" { // the kernel's UTS_NODENAME, uts(7)
		current = ""
	}
	for _, name := range []string{asked, current, file} {
		if name != "" && len(name) <= maxHostname {
			return name
		}
	}
	return fallbackHostname
}
