package initramfs

import (
	"path"
	"path/filepath"
	"strings"

	"vminit/internal/sys"
)

// addModules resolves the lists and puts the modules and the lists into t. What
// is in a list is not in a later one again.
func (t tree) addModules(c Config, info *Info) error {
	lists := []struct {
		names []string
		dst   string
		what  string
		info  *[]string
	}{
		{c.Modules, BootList, "loaded before vminitd serves", &info.Modules},
		{c.LateModules, LateList, "loaded while vminitd serves", &info.LateModules},
		{c.RestModules, RestList, "loaded last", &info.RestModules},
	}
	if len(c.Modules)+len(c.LateModules)+len(c.RestModules) == 0 {
		return nil
	}
	if c.KernelRelease == "" {
		return sys.Invalidf("initramfs: modules asked for, but no kernel release given")
	}
	dir := c.ModulesDir
	if dir == "" {
		dir = DefaultModulesDir
	}
	seen := make(map[string]bool)
	for _, l := range lists {
		r, err := resolve(dir, c.KernelRelease, l.names)
		if err != nil {
			return err
		}
		here := make(map[string]bool) // names in this list
		var lines []string
		for _, m := range r.order {
			file := r.mods[m].path
			if seen[file] {
				continue
			}
			seen[file], here[m] = true, true
			guest, err := t.addModule(c, dir, file)
			if err != nil {
				return err
			}
			*l.info = append(*l.info, guest)
			lines = append(lines, listLine(guest, r.before[m], here))
		}
		if err := t.addList(l.dst, l.what, lines); err != nil {
			return err
		}
	}
	return nil
}

// listLine is a module's line in a list: what it needs of the same list stands
// behind <.
func listLine(guest string, needs []string, here map[string]bool) string {
	line := guest + " <"
	for _, n := range needs {
		if here[n] {
			line += " " + n
		}
	}
	return line
}

// addModule puts one module into t and returns its guest path.
func (t tree) addModule(c Config, dir, file string) (guest string, err error) {
	data, err := readModule(filepath.Join(dir, c.KernelRelease, file))
	if err != nil {
		return "", err
	}
	if c.StripSignatures {
		data = emptyBTF(stripSignature(data))
	}
	guest = path.Join("/lib/modules", c.KernelRelease, plainName(file))
	return guest, t.add(guest, entry{mode: modeReg | 0o644, data: data, size: int64(len(data))})
}

// addList writes a load list, unless it is empty.
func (t tree) addList(dst, what string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	text := "# " + what + "; dependencies first\n" + strings.Join(lines, "\n") + "\n"
	return t.add(dst, entry{mode: modeReg | 0o644, data: []byte(text), size: int64(len(text))})
}
