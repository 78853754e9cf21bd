package initramfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vminit/internal/sys"
)

// DefaultModulesDir is where distributions keep modules.
const DefaultModulesDir = "/lib/modules"

// DefaultModules are the modules vminitd cannot serve without: a virtio bus
// (PCI, or MMIO on QEMU's microvm machine and Firecracker) and vsock on it.
func DefaultModules() []string {
	return []string{"virtio_pci", "virtio_mmio?", "vmw_vsock_virtio_transport"}
}

// DefaultLateModules are what the root file system of a container may be on:
// the first Create waits for them.
func DefaultLateModules() []string {
	return []string{"virtio_blk", "erofs", "overlay", "ext4?"}
}

// DefaultRestModules are what else a container may need. They are loaded last:
// the network first, because the guest waits for it, then what feeds the
// kernel's random numbers; last the host's power button, memory and clock.
func DefaultRestModules() []string {
	return []string{
		"virtio_net", "virtio_rng?", "qemu_fw_cfg?",
		"virtiofs?", "9p?", "9pnet_virtio?", "fuse?", "loop?",
		"virtio_console?", "vsock_loopback?",
		"button?", "virtio_mem?", "ptp_kvm?",
	}
}

// ResolveModules gives the files to load for names, in dependency order and
// each once, as paths relative to dir/release. It follows what modprobe(8)
// does: a name is a module or an alias, - and _ are the same, dependencies
// come first, "pre" soft dependencies before and "post" ones after the module
// that has them (missing soft dependencies are no error). What the kernel has
// built in needs no file. A name that is unknown is an error
// (sys.ErrNotFound), unless it ends in ?, which means "if there is one".
func ResolveModules(dir, release string, names []string) ([]string, error) {
	r, err := resolve(dir, release, names)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, m := range r.order {
		files = append(files, r.mods[m].path)
	}
	return files, nil
}

// resolve is ResolveModules by name, with what each needs.
func resolve(dir, release string, names []string) (*resolver, error) {
	if err := checkReleaseName(release); err != nil {
		return nil, err
	}
	idx, err := readIndex(filepath.Join(dir, release))
	if err != nil {
		return nil, err
	}
	r := newResolver(idx)
	var unknown []string
	for _, name := range names {
		name, optional := strings.CutSuffix(name, "?")
		mods, known := idx.lookup(name)
		if !known && !optional {
			unknown = append(unknown, name)
		}
		for _, m := range mods {
			if err := r.visit(m); err != nil {
				return nil, fmt.Errorf("modules of kernel %s: %w", release, err)
			}
		}
	}
	if len(unknown) > 0 {
		return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf(
			"kernel %s has no module %s, neither in %s nor built in",
			release, strings.Join(unknown, ", "), filepath.Join(dir, release)))
	}
	return r, nil
}

// checkReleaseName refuses what leads out of the directory of all modules.
func checkReleaseName(release string) error {
	if release == "" || !filepath.IsLocal(release) || strings.ContainsRune(release, '/') {
		return sys.Invalidf("kernel release %q: not a release name", release)
	}
	return nil
}

// resolver walks dependencies depth first.
type resolver struct {
	index
	seen   map[string]bool
	order  []string            // names, dependencies first
	before map[string][]string // what must be loaded before a module
}

func newResolver(idx index) *resolver {
	return &resolver{index: idx, seen: make(map[string]bool), before: make(map[string][]string)}
}

// visit appends module m after everything it needs. Circles, which only soft
// dependencies can form, are cut where they close.
func (r *resolver) visit(m string) error {
	if r.seen[m] {
		return nil
	}
	r.seen[m] = true
	// modules.dep names the nearest dependency first.
	for _, file := range slices.Backward(r.mods[m].deps) {
		dep := moduleName(file)
		if _, ok := r.mods[dep]; !ok {
			return fmt.Errorf("%s needs %s, which modules.dep does not list: run depmod", m, file)
		}
		if err := r.visit(dep); err != nil {
			return err
		}
		r.before[m] = append(r.before[m], dep)
	}
	soft := r.soft[m]
	for _, p := range r.files(soft.pre) {
		if err := r.visit(p); err != nil {
			return err
		}
		r.before[m] = append(r.before[m], p)
	}
	r.order = append(r.order, m)
	for _, p := range r.files(soft.post) {
		if err := r.visit(p); err != nil {
			return err
		}
	}
	return nil
}

// files are the modules with files that names stand for.
func (r *resolver) files(names []string) []string {
	var all []string
	for _, name := range names {
		mods, _ := r.lookup(name)
		all = append(all, mods...)
	}
	return all
}

// readIndex reads depmod's files. Only modules.dep must be there.
func readIndex(dir string) (index, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return index{}, fmt.Errorf("kernel modules: %w (install the kernel's modules, or run depmod)", err)
	}
	idx := index{builtin: make(map[string]bool)}
	if idx.mods, err = parseDep(dep); err != nil {
		return index{}, fmt.Errorf("%s: %w", filepath.Join(dir, "modules.dep"), err)
	}
	for _, f := range []struct {
		name  string
		parse func([]byte)
	}{
		{"modules.softdep", func(b []byte) { idx.soft = parseSoftdep(b) }},
		{"modules.alias", func(b []byte) { idx.aliases = parseAlias(b) }},
		{"modules.builtin", func(b []byte) { parseBuiltin(b, idx.builtin) }},
		{"modules.builtin.modinfo", func(b []byte) { idx.builtinAliases = parseModinfo(b, idx.builtin) }},
	} {
		b, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil && !os.IsNotExist(err) {
			return index{}, fmt.Errorf("kernel modules: %w", err)
		}
		f.parse(b)
	}
	return idx, nil
}
