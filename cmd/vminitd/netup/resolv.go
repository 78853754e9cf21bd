package netup

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxNameservers is how many a resolver looks at (MAXNS, resolv.conf(5)).
const maxNameservers = 3

// ResolvConf renders resolv.conf(5) for the servers, in order, without repeats.
func ResolvConf(servers []netip.Addr) string {
	var b strings.Builder
	seen := make(map[netip.Addr]bool)
	for _, s := range servers {
		if !s.IsValid() || seen[s] || len(seen) == maxNameservers {
			continue
		}
		seen[s] = true
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

// ParsePNP returns the name servers in the kernel's own account of what it
// configured, /proc/net/pnp, which has the form of resolv.conf(5).
func ParsePNP(text string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := parseAddr(fields[1]); err == nil && !a.IsUnspecified() && len(servers) < maxNameservers {
			servers = append(servers, a)
		}
	}
	return servers
}

// WriteEtc puts a small file into place atomically. On a read-only root
// filesystem it is written below scratch, a writable directory, and bound over
// path, which then has to exist.
func WriteEtc(path, content, scratch string) error {
	err := replaceFile(path, content)
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	shadow := filepath.Join(scratch, filepath.Base(path))
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", scratch, err)
	}
	if err := replaceFile(shadow, content); err != nil {
		return err
	}
	if err := unix.Mount(shadow, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s over the read-only %s: %w", shadow, path, err)
	}
	return nil
}

// replaceFile writes beside path and renames, so that no reader sees half a
// file and a symbolic link at path is replaced rather than followed.
func replaceFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of %s: %w", path, err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}
