package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/ttrpc"

	bundleapi "vminit/api/services/bundle/v1"
	"vminit/internal/sys"
)

const (
	maxBundleFiles    = 256
	maxBundleFileSize = 4 << 20 // bytes; a ttrpc frame holds no more either
)

// reservedInBundle are names the daemon uses in a bundle itself.
var reservedInBundle = []string{"rootfs", "mounts"}

// Bundles is the Bundle service. It owns the directory that bundles live in
// and never touches anything outside it.
type Bundles struct {
	root string

	mu   sync.Mutex // guards made
	made map[string]bool
}

// NewBundles returns the service over the directory root (/run/bundles in
// a guest), which is made when the first bundle is.
func NewBundles(root string) *Bundles { return &Bundles{root: root, made: map[string]bool{}} }

// Register adds the service to srv.
func (b *Bundles) Register(srv *ttrpc.Server) { bundleapi.RegisterTTRPCBundleService(srv, b) }

// Create implements Bundle.Create. Two calls with one id may race: one of them
// makes the bundle, the other gets ErrExists.
func (b *Bundles) Create(_ context.Context, req *bundleapi.CreateRequest) (*bundleapi.CreateResponse, error) {
	if err := validateBundle(req); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.root, 0o700); err != nil {
		return nil, fmt.Errorf("create bundle directory: %w", err)
	}
	root, err := os.OpenRoot(b.root)
	if err != nil {
		return nil, fmt.Errorf("open bundle directory: %w", err)
	}
	defer root.Close()

	if err := root.Mkdir(req.Id, 0o750); errors.Is(err, fs.ErrExist) {
		return nil, sys.Mark(sys.ErrExists, fmt.Errorf("bundle %q exists already", req.Id))
	} else if err != nil {
		return nil, fmt.Errorf("create bundle %q: %w", req.Id, err)
	}
	if err := fillBundle(root, req); err != nil {
		err = fmt.Errorf("create bundle %q: %w", req.Id, err)
		if rmErr := root.RemoveAll(req.Id); rmErr != nil {
			err = errors.Join(err, fmt.Errorf("remove what was made of it: %w", rmErr))
		}
		return nil, err
	}
	b.mu.Lock()
	b.made[req.Id] = true
	b.mu.Unlock()
	return &bundleapi.CreateResponse{Bundle: filepath.Join(b.root, req.Id)}, nil
}

// validateBundle checks a request before anything is made of it.
func validateBundle(req *bundleapi.CreateRequest) error {
	if err := validateName("bundle id", req.Id); err != nil {
		return err
	}
	if n := len(req.Files); n > maxBundleFiles {
		return sys.Invalidf("bundle %q has %d files; at most %d are allowed", req.Id, n, maxBundleFiles)
	}
	for name, data := range req.Files {
		if err := validateName("bundle file", name); err != nil {
			return err
		}
		if slices.Contains(reservedInBundle, name) {
			return sys.Invalidf("bundle file %q: the name is reserved for the daemon's own use", name)
		}
		if len(data) > maxBundleFileSize {
			return sys.Invalidf("bundle file %q has %d bytes; at most %d are allowed", name, len(data), maxBundleFileSize)
		}
	}
	return nil
}

// fillBundle puts rootfs/ and the files into the new, empty directory.
func fillBundle(root *os.Root, req *bundleapi.CreateRequest) error {
	dir, err := root.OpenRoot(req.Id)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Modes are set again where the daemon's umask may have cut them.
	if err := dir.Chmod(".", 0o750); err != nil {
		return err
	}
	if err := dir.Mkdir("rootfs", 0o755); err != nil {
		return err
	}
	if err := dir.Chmod("rootfs", 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(req.Files)) {
		if err := writeNew(dir, name, req.Files[name]); err != nil {
			return err
		}
	}
	return nil
}

// writeNew writes a file that must not exist yet, mode 0600.
func writeNew(dir *os.Root, name string, data []byte) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
