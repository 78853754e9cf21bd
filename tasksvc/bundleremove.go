package tasksvc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Remove removes a bundle that Create has made, by the path that Create told.
// It does nothing about any other path: a bundle of the host's is the host's.
// What is mounted inside is never touched, and then the bundle stays: the error
// is ErrState.
func (b *Bundles) Remove(bundle string) error {
	id := filepath.Base(bundle)
	b.mu.Lock()
	made := b.made[id] && filepath.Clean(bundle) == filepath.Join(b.root, id)
	b.mu.Unlock()
	if !made {
		return nil
	}
	root, err := unix.Open(b.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open bundle directory: %w", err)
	}
	defer unix.Close(root)
	if err := removeTree(root, id, 0); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove bundle %s: %w", bundle, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.made, id)
	return nil
}

// maxTreeDepth bounds the recursion, each level of which holds a descriptor: a
// container may have made any tree in a rootfs that is not mounted.
const maxTreeDepth = 512

// removeTree removes what name in the directory dir is, without following a
// link or entering a mount (openat2(2), Linux 5.6).
func removeTree(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err != unix.EISDIR && err != unix.EPERM { // EPERM: POSIX says so of directories
		return mountedError(name, err)
	}
	if depth > maxTreeDepth {
		return fmt.Errorf("%s: directories nested deeper than %d", name, maxTreeDepth)
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return mountedError(name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := emptyDir(f, depth); err != nil {
		return err
	}
	return mountedError(name, unix.Unlinkat(dir, name, unix.AT_REMOVEDIR))
}

// emptyDir removes everything in a directory, directories first: if one of them
// holds a mount the files of a bundle are still there.
func emptyDir(f *os.File, depth int) error {
	for {
		entries, err := f.ReadDir(512)
		slices.SortStableFunc(entries, func(a, b os.DirEntry) int {
			switch {
			case a.IsDir() == b.IsDir():
				return 0
			case a.IsDir():
				return -1
			}
			return 1
		})
		for _, e := range entries {
			if err := removeTree(int(f.Fd()), e.Name(), depth+1); err != nil && err != unix.ENOENT {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// mountedError says what EXDEV and EBUSY mean here.
func mountedError(name string, err error) error {
	if err == unix.EXDEV || err == unix.EBUSY {
		return sys.Mark(sys.ErrState, fmt.Errorf("something is mounted on %s: %w", name, err))
	}
	return err
}
