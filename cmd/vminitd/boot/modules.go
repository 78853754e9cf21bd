package boot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Lists of kernel modules, written when the initramfs is built: one path a
// line, each module after those it depends on.
const (
	// ModuleList is what serving needs (the vsock transport).
	ModuleList = "/etc/vminit/modules"
	// ModuleListLate is what containers need and serving does not.
	ModuleListLate = "/etc/vminit/modules.late"
)

// maxModuleList bounds a list file; a list of all modules of a distribution's
// kernel is smaller.
const maxModuleList = 1 << 20

// LoadModules loads the modules of a list file in its order. A missing list
// means that there is nothing to do. A module that is loaded already, or built
// in, is fine; one that fails is reported and the rest still loaded.
//
// Modules are loaded one after the other: their order carries the dependencies.
// Nearly all of the time is the check of their signatures; without those, which
// the builder of the initramfs can take off, there is nothing left to win.
func LoadModules(list string) error {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxModuleList+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", list, err)
	}
	if len(b) > maxModuleList {
		return fmt.Errorf("%s is larger than %d bytes", list, maxModuleList)
	}
	modules, err := parseModules(b)
	errs := []error{err}
	for _, m := range modules {
		errs = append(errs, m.load())
	}
	return errors.Join(errs...)
}

// module is one line of a list: a file and the parameters to load it with.
type module struct {
	Path   string
	Params string
}

// parseModules reads a list: one absolute path a line, module parameters after
// a space, '#' starts a comment. A malformed line is reported and left out.
func parseModules(b []byte) ([]module, error) {
	var modules []module
	var errs []error
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxModuleList)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		path, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case path == "":
		case !filepath.IsAbs(path) || strings.ContainsRune(path+params, 0):
			errs = append(errs, fmt.Errorf("line %d: %q is not an absolute path", n, path))
		default:
			modules = append(modules, module{Path: path, Params: strings.TrimSpace(params)})
		}
	}
	return modules, errors.Join(append(errs, lines.Err())...)
}

// load loads one module file: finit_module(2), Linux 3.8. A compressed file is
// unpacked by the kernel (MODULE_INIT_COMPRESSED_FILE, Linux 5.17).
func (m module) load() error {
	fd, err := unix.Open(m.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open module %s: %w", m.Path, err)
	}
	defer unix.Close(fd)
	flags := 0
	if filepath.Ext(m.Path) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(fd, m.Params, flags)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", m.Path, err)
	}
	return nil
}
