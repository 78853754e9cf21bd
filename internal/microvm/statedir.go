package microvm

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// What a state directory holds.
const (
	lockFile     = "lock" // locked by the owner (flock(2)) as long as it lives
	metaFile     = "meta.json"
	consoleFile  = "console.log"
	qemuLogFile  = "qemu.log"
	consoleSock  = "console.sock"
	qmpSock      = "qmp.sock"
	deviceSock   = "device.sock" // QEMU's way to our vsock device
	vsockSock    = "vsock.sock"  // Firecracker's convention: CONNECT PORT
	rpcSock      = "rpc.sock"    // forwards RPCPort
	streamSock   = "stream.sock" // forwards StreamPort
	maxUnixPath  = 107           // sun_path without its NUL, unix(7)
	longestEntry = consoleSock
)

// StateRoot returns where the caller's machines have their state directories:
// $XDG_RUNTIME_DIR/vminit/vms, else /run/vminit/vms for root, else a directory
// of the user's own in the directory for temporary files.
func StateRoot() (string, error) {
	switch dir := os.Getenv("XDG_RUNTIME_DIR"); {
	case filepath.IsAbs(dir):
		return filepath.Join(dir, "vminit", "vms"), nil
	case os.Geteuid() == 0:
		return "/run/vminit/vms", nil
	}
	dir := filepath.Join(os.TempDir(), "vminit-"+strconv.Itoa(os.Geteuid()))
	if err := ownDirectory(dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, "vms"), nil
}

// ownDirectory makes sure that dir, in a place where others can make entries,
// is ours alone.
func ownDirectory(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return sys.Mark(sys.ErrState, fmt.Errorf("%s is not a directory of this user's alone: remove it, or set XDG_RUNTIME_DIR", dir))
	}
	return nil
}

// stateDir is the directory of a machine that this process owns.
type stateDir struct {
	path string
	lock *os.File
}

// file returns the path of an entry.
func (d *stateDir) file(name string) string { return filepath.Join(d.path, name) }

// claim makes and locks the state directory of a new machine. It is ErrExists
// if a machine of this name runs; what a dead owner left is cleared away.
func claim(root, name string) (*stateDir, error) {
	path := filepath.Join(root, name)
	if n := len(filepath.Join(path, longestEntry)); n > maxUnixPath {
		return nil, sys.Invalidf("state directory %s: its sockets' paths would have %d bytes, more than the %d allowed; set XDG_RUNTIME_DIR to a shorter one", path, n, maxUnixPath)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	for range claimAttempts {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
		lock, err := lockDir(path, true)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue // somebody has just removed the directory
		case errors.Is(err, unix.EWOULDBLOCK) && !exists(filepath.Join(path, metaFile)):
			time.Sleep(10 * time.Millisecond) // somebody looks whether it can be cleared away
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, sys.Mark(sys.ErrExists, fmt.Errorf("a VM named %s runs already", name))
		case err != nil:
			return nil, err
		}
		d := &stateDir{path, lock}
		if err := d.clear(); err != nil {
			_ = lock.Close()
			return nil, err
		}
		return d, nil
	}
	return nil, sys.Mark(sys.ErrExists, fmt.Errorf("a VM named %s is starting or ending", name))
}

// claimAttempts bounds how often claim tries again when others get in its way.
const claimAttempts = 20

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// lockDir locks the machine's lock file: EWOULDBLOCK if its owner lives,
// ErrNotExist if there is none (any more).
func lockDir(path string, create bool) (*os.File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	name := filepath.Join(path, lockFile)
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	// Between open and lock the file may have been removed by its last owner.
	opened, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(name); err == nil && !os.SameFile(opened, now) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// clear removes everything but the lock.
func (d *stateDir) clear() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(d.file(e.Name())); err != nil {
			return fmt.Errorf("clear state directory: %w", err)
		}
	}
	return nil
}

// remove gives the directory up. The lock goes last, so that nobody mistakes
// what is half removed for a machine.
func (d *stateDir) remove() error {
	defer d.lock.Close()
	if err := d.clear(); err != nil {
		return err
	}
	if err := os.Remove(d.file(lockFile)); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	if err := os.Remove(d.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}

func randomName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return "vm-" + hex.EncodeToString(b[:])
}
