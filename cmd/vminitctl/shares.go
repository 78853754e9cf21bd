package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/initramfs"
	"vminit/internal/sys"
)

// share is a host directory or file that a container sees.
type share struct {
	source, target string // absolute
	readOnly       bool

	image *image // a copy, or
	tag   string // the directory itself, by 9p
	name  string // of the one file in it that is meant; "" for all
}

// parseShare reads SRC:DST[:ro].
func parseShare(s string) (share, error) {
	parts := strings.Split(s, ":")
	bad := sys.Invalidf("--mount %q: want SRC:DST or SRC:DST:ro with an absolute DST", s)
	var sh share
	switch {
	case len(parts) == 3 && parts[2] == "ro":
		sh.readOnly = true
	case len(parts) == 3 && parts[2] == "rw":
	case len(parts) != 2:
		return sh, bad
	}
	if parts[0] == "" || !filepath.IsAbs(parts[1]) {
		return sh, bad
	}
	var err error
	if sh.source, err = filepath.Abs(parts[0]); err != nil {
		return sh, err
	}
	if sh.source, err = filepath.EvalSymlinks(sh.source); err != nil {
		return sh, fmt.Errorf("--mount: %w", err)
	}
	sh.target = filepath.Clean(parts[1])
	if sh.target == "/" {
		return sh, sys.Invalidf("--mount %q: the root itself is what --rootfs says", s)
	}
	return sh, nil
}

// nobodyKnows9p is why a share that a copy can carry does not travel as 9p.
const nobodyKnows9p = "it is not known whether the guest's kernel has it"

// prepareShares decides how each share travels: as 9p if the guest has that
// (no9p says why not), else, if it is only read, as a copy on a disk. What cannot
// travel as a copy is tried as 9p if nobody knows.
func prepareShares(ctx context.Context, args []string, no9p string, p *progress) (shares []*share, err error) {
	defer func() {
		if err != nil {
			closeShares(shares)
		}
	}()
	for i, arg := range args {
		sh, err := parseShare(arg)
		if err != nil {
			return shares, err
		}
		fi, err := os.Stat(sh.source)
		if err != nil {
			return shares, fmt.Errorf("--mount: %w", err)
		}
		dir := sh.source
		if !fi.IsDir() {
			dir, sh.name = filepath.Split(sh.source)
		}
		switch {
		case no9p == "" || no9p == nobodyKnows9p && !(sh.readOnly && fi.IsDir()):
			sh.tag = fmt.Sprintf("share%d", i)
			sh.source = filepath.Clean(dir)
		case !sh.readOnly:
			return shares, sys.Unsupportedf("--mount %s: sharing a directory that can be written needs 9p, but %s; add :ro to give the container a copy to read", arg, no9p)
		case !fi.IsDir():
			return shares, sys.Unsupportedf("--mount %s: a single file needs 9p, but %s; mount the directory it is in", arg, no9p)
		default:
			if sh.image, err = openImage(ctx, sh.source, p); err != nil {
				return shares, fmt.Errorf("--mount %s: %w", arg, err)
			}
		}
		shares = append(shares, &sh)
	}
	return shares, nil
}

func closeShares(shares []*share) {
	for _, sh := range shares {
		if sh.image != nil {
			_ = sh.image.Close()
		}
	}
}

// mount says how the guest mounts the share, from a device or by its tag.
func (sh *share) mount(device string) *types.Mount {
	if sh.image != nil {
		return &types.Mount{Type: sh.image.fsType, Source: device, Options: readOnlyOptions[sh.image.fsType]}
	}
	options := []string{"trans=virtio", "version=9p2000.L", "msize=262144"}
	if sh.readOnly {
		options = append(options, "ro")
	}
	return &types.Mount{Type: "9p", Source: sh.tag, Options: options}
}

// bind says how the container gets what the guest has mounted at place.
func (sh *share) bind(place string) specs.Mount {
	options := []string{"rbind", "nosuid", "nodev"}
	if sh.readOnly {
		options = append(options, "ro")
	}
	return specs.Mount{Destination: sh.target, Type: "bind", Source: filepath.Join(place, sh.name), Options: options}
}

// why9pIsMissing says why a kernel cannot mount 9p; "" if it can. A kernel without
// modules may have it built in, as our small one.
func why9pIsMissing(release string) string {
	if !initramfs.HasModules(release) {
		return nobodyKnows9p
	}
	if hasModule(release, "9p") && hasModule(release, "9pnet_virtio") {
		return ""
	}
	return fmt.Sprintf("the guest's kernel %s lacks it (see --kernel; Debian's linux-image-amd64 has it)", release)
}

// hasModule reports whether a kernel installed here has a module, loadable or
// built in.
func hasModule(release, name string) bool {
	if release == "" {
		return false
	}
	_, err := initramfs.ResolveModules(initramfs.DefaultModulesDir, release, []string{name})
	return err == nil
}
