package tasksvc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// guestResolvConf is what the guest's network wrote.
const guestResolvConf = "/etc/resolv.conf"

// makeEtcFiles makes those of resolv.conf, hosts and hostname that a container's
// config mounts from its bundle and that the host has not put there: a config
// needs no more than a bind mount of "resolv.conf" to have the guest's name
// servers. If the Create fails they go.
func makeEtcFiles(bundle string, spec *specs.Spec, back *undo) error {
	made := map[string]bool{}
	for _, m := range spec.Mounts {
		name, ok := inBundle(bundle, m.Source)
		if !ok || made[name] {
			continue
		}
		made[name] = true
		path := filepath.Join(bundle, name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue // the host's; or for the mount to complain about
		}
		content, err := etcFile(name, spec.Hostname)
		if err != nil {
			return fmt.Errorf("make %s for the container: %w", name, err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return fmt.Errorf("make %s for the container: %w", name, err)
		}
		back.add(func() { _ = os.Remove(path) })
		_, err = f.WriteString(content)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("make %s for the container: %w", name, err)
		}
	}
	return nil
}

// inBundle returns which of the files a mount's source is. A relative source is
// relative to the bundle.
func inBundle(bundle, source string) (string, bool) {
	switch base := filepath.Base(source); base {
	case "resolv.conf", "hosts", "hostname":
		return base, source == base || source == "./"+base || filepath.Clean(source) == filepath.Join(bundle, base)
	}
	return "", false
}

// etcFile is the content of one file for a container of that host name; an empty
// one is the guest's.
func etcFile(name, hostname string) (string, error) {
	if name == "resolv.conf" {
		b, err := readRegular(guestResolvConf, maxEtcFile)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil // a guest without a resolver
		}
		return string(b), err
	}
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return "", err
		}
	}
	if strings.ContainsAny(hostname, " \t\r\n") {
		return "", fmt.Errorf("hostname %q has white space", hostname)
	}
	if name == "hostname" {
		return hostname + "\n", nil
	}
	return "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t" + hostname + "\n", nil
}

const maxEtcFile = 64 << 10
