package initramfs

import (
	"path"
	"path/filepath"
	"strings"

	"vminit/internal/sys"
)

// addModules resolves both lists and puts the modules and the lists into t. A
// module of the boot list is not in the late list again.
func (t tree) addModules(c Config) (boot, late []string, err error) {
	if len(c.Modules)+len(c.LateModules) == 0 {
		return nil, nil, nil
	}
	if c.KernelRelease == "" {
		return nil, nil, sys.Invalidf("initramfs: modules asked for, but no kernel release given")
	}
	dir := c.ModulesDir
	if dir == "" {
		dir = DefaultModulesDir
	}
	bootFiles, err := ResolveModules(dir, c.KernelRelease, c.Modules)
	if err != nil {
		return nil, nil, err
	}
	lateFiles, err := ResolveModules(dir, c.KernelRelease, c.LateModules)
	if err != nil {
		return nil, nil, err
	}
	seen := make(map[string]bool)
	for i, file := range append(bootFiles, lateFiles...) {
		if seen[file] {
			continue
		}
		seen[file] = true
		guest, err := t.addModule(c, dir, file)
		if err != nil {
			return nil, nil, err
		}
		if i < len(bootFiles) {
			boot = append(boot, guest)
		} else {
			late = append(late, guest)
		}
	}
	if err := t.addList(BootList, "loaded before vminitd serves", boot); err != nil {
		return nil, nil, err
	}
	return boot, late, t.addList(LateList, "loaded while vminitd serves", late)
}

// addModule puts one module into t and returns its guest path.
func (t tree) addModule(c Config, dir, file string) (guest string, err error) {
	data, err := readModule(filepath.Join(dir, c.KernelRelease, file))
	if err != nil {
		return "", err
	}
	if c.StripSignatures {
		data = stripSignature(data)
	}
	guest = path.Join("/lib/modules", c.KernelRelease, plainName(file))
	return guest, t.add(guest, entry{mode: modeReg | 0o644, data: data, size: int64(len(data))})
}

// addList writes a load list, unless it is empty.
func (t tree) addList(dst, what string, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	text := "# " + what + "; dependencies first\n" + strings.Join(paths, "\n") + "\n"
	return t.add(dst, entry{mode: modeReg | 0o644, data: []byte(text), size: int64(len(text))})
}
