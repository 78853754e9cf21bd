package microvm

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// StateDirEnv names a directory for what runs on this machine, machines and the
// daemon alike, instead of the usual one.
const StateDirEnv = "VMINIT_STATE_DIR"

// StateRoot returns where the caller's machines have their state directories:
// vms in $VMINIT_STATE_DIR, else in /run/vminit for root, else in
// $XDG_RUNTIME_DIR/vminit, else in a directory of the user's own in the directory
// for temporary files.
func StateRoot() (string, error) {
	dir, err := stateDirectory(os.Getenv, os.Geteuid(), inUserNamespace())
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "vms"), nil
}

// stateDirectory chooses as runc does: a root that is the machine's has one place,
// whoever's session it came from. XDG_RUNTIME_DIR is removed when its user's last
// session ends, and what was started from there lives on. Root of a user namespace
// is a user, who can seldom write to /run.
func stateDirectory(env func(string) string, euid int, userns bool) (string, error) {
	own, session := env(StateDirEnv), env("XDG_RUNTIME_DIR")
	switch {
	case filepath.IsAbs(own):
		return filepath.Clean(own), nil
	case own != "":
		return "", sys.Invalidf("%s=%s: want an absolute path", StateDirEnv, own)
	case euid == 0 && !userns:
		return "/run/vminit", nil
	case filepath.IsAbs(session):
		return filepath.Join(session, "vminit"), nil
	case euid == 0:
		return "/run/vminit", nil
	}
	dir := filepath.Join(os.TempDir(), "vminit-"+strconv.Itoa(euid))
	return dir, ownDirectory(dir)
}

// inUserNamespace reports whether this is not the initial user namespace, which
// alone maps all ids (user_namespaces(7)). Without such namespaces there is no
// uid_map.
func inUserNamespace() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295"
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
		return sys.Mark(sys.ErrState, fmt.Errorf("%s is not a directory of this user's alone: remove it, or set %s", dir, StateDirEnv))
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
		return nil, sys.Invalidf("state directory %s: its sockets' paths would have %d bytes, more than the %d allowed; set %s to a shorter one", path, n, maxUnixPath, StateDirEnv)
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
	if err := hasName(f, name); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// hasName is ErrNotExist unless name is the name of the open file.
func hasName(f *os.File, name string) error {
	opened, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(name)
	if err == nil && !os.SameFile(opened, named) {
		err = os.ErrNotExist
	}
	return err
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
// what is half removed for a machine. A directory that has gone, or that another
// machine has made anew, is not ours to remove.
func (d *stateDir) remove() error {
	defer d.lock.Close()
	if err := hasName(d.lock, d.file(lockFile)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
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
