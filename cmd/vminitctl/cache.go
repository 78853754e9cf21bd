package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// cacheLife is how long something in the cache that nobody uses stays there.
const cacheLife = 14 * 24 * time.Hour

// cache is a directory of files that can be made again: guest images and
// kernels, named by what they were made from.
type cache struct {
	dir string
}

// openCache makes $XDG_CACHE_HOME/vminit, or ~/.cache/vminit, or, where there is
// no home that can be written to, a directory for temporary files.
func openCache() (cache, error) {
	if base, err := os.UserCacheDir(); err == nil {
		c := cache{filepath.Join(base, "vminit")}
		if os.MkdirAll(c.dir, 0o700) == nil && c.own() == nil {
			return c, nil
		}
	}
	c := cache{filepath.Join(os.TempDir(), fmt.Sprintf("vminit-cache-%d", os.Geteuid()))}
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return c, fmt.Errorf("make cache directory: %w (set XDG_CACHE_HOME to a place that can be written)", err)
	}
	return c, c.own()
}

// own makes sure that what is in the cache was put there by this user: guests
// boot from it.
func (c cache) own() error {
	var st unix.Stat_t
	if err := unix.Lstat(c.dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: c.dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return sys.Mark(sys.ErrState, fmt.Errorf("cache %s is not a directory that only this user can write to: remove it, or set XDG_CACHE_HOME", c.dir))
	}
	if err := unix.Access(c.dir, unix.W_OK); err != nil {
		return &os.PathError{Op: "access", Path: c.dir, Err: err}
	}
	return nil
}

// get returns the path of a file, made by fill if it is not there. Two
// processes may fill at once: each file is complete, and the last one stays.
func (c cache) get(name string, fill func(*os.File) error) (string, error) {
	path := filepath.Join(c.dir, name)
	if _, err := os.Stat(path); err == nil {
		now := time.Now()
		_ = os.Chtimes(path, now, now) // so that expire sees that it is used
		return path, nil
	}
	f, err := c.temp(name)
	if err != nil {
		return "", err
	}
	err = fill(f)
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	c.expire()
	return path, nil
}

// temp makes a file for something that is not complete yet, or not to stay.
func (c cache) temp(name string) (*os.File, error) {
	return os.CreateTemp(c.dir, ".tmp-"+name+"-*")
}

// expire removes what has not been used for long, and what a process that was
// killed left half done.
func (c cache) expire() {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		life := cacheLife
		if strings.HasPrefix(e.Name(), ".tmp-") {
			life = 24 * time.Hour
		}
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && time.Since(fi.ModTime()) > life {
			_ = os.Remove(filepath.Join(c.dir, e.Name()))
		}
	}
}
