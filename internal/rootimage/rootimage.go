// Package rootimage turns a directory into an EROFS image that a guest mounts
// as a container's root file system, and tells what kind of image a file is. It
// needs no privileges and no tools; the same tree gives the same bytes. It
// reads the tree and writes one file, nothing else.
//
// Images are uncompressed, with 4 KiB blocks, and need kernel 5.4 or later.
// Hard links stay links, holes stay holes in the image file, extended
// attributes and ACLs are kept. (The EROFS library for Go writes a copy for
// every hard link, and the kernel does not see the ACLs it writes: a busybox
// made of hard links would grow four hundredfold. Tests read with it.)
package rootimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Options changes how an image is made. The zero value is good.
type Options struct {
	// Owner says who owns the files in the guest.
	Owner Owner

	// Mtime, if not zero, is the modification time of every file.
	Mtime time.Time

	// Progress, if set, is told now and then how many bytes of file contents
	// have been copied of how many. It is called by the goroutine of Build.
	Progress func(done, total int64)
}

// Owner says who owns the files of an image.
type Owner int

const (
	// OwnerAuto keeps the owners for root, who can give them to containers,
	// and makes everything root's for an ordinary user, whose own id means
	// nothing in a guest.
	OwnerAuto Owner = iota
	// OwnerKeep takes the owners from the directory.
	OwnerKeep
	// OwnerRoot makes everything owned by 0:0.
	OwnerRoot
)

// Info describes an image that was made.
type Info struct {
	Size   int64  // bytes, a multiple of 4096; holes count
	UUID   string // made from the contents
	Inodes int
	// Mounts are directories that were left empty, because another file
	// system is mounted there (relative paths).
	Mounts []string
}

// Build makes the file dst from the directory dir. A file of that name is
// replaced, but only once the image is complete; on error, or when ctx ends,
// nothing is left behind.
func Build(ctx context.Context, dst, dir string, o Options) (info Info, err error) {
	t, err := scan(ctx, dir, o)
	if err != nil {
		return Info{}, err
	}
	if err := t.layout(); err != nil {
		return Info{}, err
	}
	f, err := os.CreateTemp(filepath.Dir(dst), "."+filepath.Base(dst)+".*")
	if err != nil {
		return Info{}, fmt.Errorf("root image: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	w := writer{tree: t, out: f, sum: sha256.New(), progress: o.Progress}
	uuid, err := w.write(ctx)
	// CreateTemp is for secrets, an image is not one.
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return Info{}, fmt.Errorf("root image %s: %w", dst, err)
	}
	if err := os.Rename(f.Name(), dst); err != nil {
		return Info{}, fmt.Errorf("root image: %w", err)
	}
	return Info{Size: t.blocks * blockSize, UUID: formatUUID(uuid), Inodes: len(t.nodes), Mounts: t.mounts}, nil
}

func formatUUID(u [16]byte) string {
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
