package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/rootimage"
	"vminit/internal/sys"
)

// image is a file system on a disk for the guest.
type image struct {
	file   *os.File // read-only; gone from its directory if it was made here
	fsType string
	dir    string // that it was made of; "" if others made it
	mode   os.FileMode
}

func (i *image) Close() error { return i.file.Close() }

// openImage opens a directory or an image of a file system. A directory becomes
// an EROFS image that lives only as long as it is open: nothing is left of it,
// however this program ends.
func openImage(ctx context.Context, path string, p *progress) (*image, error) {
	kind, err := rootimage.Kind(path)
	if err != nil {
		return nil, err
	}
	if kind != rootimage.Dir {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		return &image{file: f, fsType: kind, mode: 0o755}, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	f, err := buildImage(ctx, path, p)
	if err != nil {
		return nil, err
	}
	return &image{file: f, fsType: rootimage.EROFS, dir: path, mode: fi.Mode().Perm()}, nil
}

// buildImage makes an EROFS image of a directory and takes its name away.
func buildImage(ctx context.Context, dir string, p *progress) (*os.File, error) {
	store, err := openCache()
	if err != nil {
		return nil, err
	}
	tmp, err := store.temp("image")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	options := rootimage.Options{Progress: p.bytes("packing " + filepath.Base(dir))}
	if _, err := rootimage.Build(ctx, tmp.Name(), dir, options); err != nil {
		return nil, err
	}
	return os.Open(tmp.Name())
}

// readOnlyOptions mount a file system of a disk that cannot be written to; those
// with a journal must be told not to replay it.
var readOnlyOptions = map[string][]string{
	rootimage.EROFS:    {"ro"},
	rootimage.Squashfs: {"ro"},
	rootimage.ISO9660:  {"ro"},
	rootimage.Btrfs:    {"ro"},
	rootimage.Ext4:     {"ro", "noload"},
	rootimage.XFS:      {"ro", "norecovery", "nouuid"},
}

// fileSystemModule is the module of a file system that goes by another name.
func fileSystemModule(fsType string) string {
	if fsType == rootimage.ISO9660 {
		return "isofs"
	}
	return fsType
}

// bundleDir is where the guest keeps bundles, docs/wire.md section 2.
const bundleDir = "/run/bundles"

// assemble says how the guest puts a container's file systems together, from
// images on its disks in the order of devices: the root's image with a tmpfs
// over it that takes what the container writes, and the shares beside them
// (docs/wire.md section 4). The binds bring the shares into the container.
func assemble(id string, root *image, shares []*share, devices []string) (mounts []*types.Mount, binds []specs.Mount, err error) {
	options, ok := readOnlyOptions[root.fsType]
	if !ok {
		return nil, nil, sys.Unsupportedf("root file systems of type %s", root.fsType)
	}
	mounts = []*types.Mount{
		{Type: root.fsType, Source: devices[0], Options: options},
		{Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0700"}},
	}
	devices = devices[1:]
	for _, sh := range shares {
		device := ""
		if sh.image != nil {
			device, devices = devices[0], devices[1:]
		}
		place := fmt.Sprintf("%s/%s/mounts/%d", bundleDir, id, len(mounts))
		mounts = append(mounts, sh.mount(device))
		binds = append(binds, sh.bind(place))
	}
	return append(mounts, &types.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
		fmt.Sprintf("X-containerd.mkdir.path={{ mount 1 }}/upper:%04o", root.mode.Perm()),
		"X-containerd.mkdir.path={{ mount 1 }}/work:0700",
		"lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work",
	}}), binds, nil
}

// diskDevice is the name of the n-th virtio disk in the guest.
func diskDevice(n int) string { return "/dev/vd" + string(rune('a'+n)) }
