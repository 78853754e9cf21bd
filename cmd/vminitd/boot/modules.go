package boot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Lists of kernel modules, written when the initramfs is built: one path a
// line, each module after those it depends on.
const (
	// ModuleList is what serving needs (the vsock transport).
	ModuleList = "/etc/vminit/modules"
	// ModuleListLate is what a container's root file system needs.
	ModuleListLate = "/etc/vminit/modules.late"
	// ModuleListRest is what else containers may need (network, shares).
	ModuleListRest = "/etc/vminit/modules.rest"
)

// maxModuleList bounds a list file; a list of all modules of a distribution's
// kernel is smaller.
const maxModuleList = 1 << 20

// LoadModules loads the modules of a list file in its order, those that do not
// need each other at the same time where there are several CPUs. A missing list
// means that there is nothing to do. A module that is loaded already, or built
// in, or finds nothing to drive, is fine; one that fails is reported and the rest still loaded. Each module
// is an entry of the timeline.
//
// The list that serving waits for is loaded one by one: the vsock transport is a
// chain, and two CPUs that patch the kernel's text at once hinder each other
// (measured with 2 CPUs: 100 ms instead of 209 to the end of that list, but for
// the later lists 660 ms instead of 799 in parallel). The second list, which is
// loaded while the first requests come, gives way to them.
//
// Most of the time is the check of signatures, then the reading of type
// information; the builder of the initramfs can take both off.
func LoadModules(r *Runner, list string) error {
	b, err := readModuleList(list)
	if b == nil {
		return err
	}
	modules, err := parseModules(b)
	workers, run := runtime.NumCPU(), func(fn func()) { fn() }
	switch list {
	case ModuleList:
		workers = 1
	case ModuleListLate:
		run = GiveWay
	}
	failed := loadAll(modules, workers, run, func(m module) error {
		e := Entry{Name: "module " + m.name(), Start: Now()}
		e.Err = m.load()
		e.End = Now()
		r.Timeline.Add(e)
		return e.Err
	})
	return errors.Join(err, failed)
}

// readModuleList returns nil for a list that is not there.
func readModuleList(list string) ([]byte, error) {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxModuleList+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", list, err)
	}
	if len(b) > maxModuleList {
		return nil, fmt.Errorf("%s is larger than %d bytes", list, maxModuleList)
	}
	return b, nil
}

// loadAll calls load for all modules, by workers, each in a call of run, that
// take them in order and wait for what each needs.
func loadAll(modules []module, workers int, run func(func()), load func(module) error) error {
	loaded := make([]chan struct{}, len(modules)) // each closed when its module is done
	for i := range modules {
		loaded[i] = make(chan struct{})
	}
	errs := make([]error, len(modules))
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < len(modules); i = int(next.Add(1)) - 1 {
			for _, n := range modules[i].needs(modules[:i]) {
				<-loaded[n]
			}
			errs[i] = load(modules[i])
			close(loaded[i])
		}
	}
	var wg sync.WaitGroup
	for range min(workers, len(modules)) - 1 {
		wg.Go(func() { run(work) })
	}
	run(work)
	wg.Wait()
	return errors.Join(errs...)
}

// module is one line of a list: a file, the parameters to load it with, and
// which modules before it in the list it needs.
type module struct {
	Path   string
	Params string
	// Needs holds names; nil means all modules before it.
	Needs []string
}

// name is the module's name as the kernel writes it.
func (m module) name() string {
	base, _, _ := strings.Cut(filepath.Base(m.Path), ".")
	return strings.ReplaceAll(base, "-", "_")
}

// needs returns the indexes of those modules that must be loaded before m.
func (m module) needs(before []module) []int {
	var indexes []int
	for i, b := range before {
		if m.Needs == nil || slices.Contains(m.Needs, b.name()) {
			indexes = append(indexes, i)
		}
	}
	return indexes
}

// parseModules reads a list: one absolute path a line, module parameters after
// a space, after '<' the names of those modules before it that it needs, '#'
// starts a comment. Without '<' it may need all before it. A malformed line is
// reported and left out.
func parseModules(b []byte) ([]module, error) {
	var modules []module
	var errs []error
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxModuleList)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line, needs, told := strings.Cut(line, "<")
		path, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		m := module{Path: path, Params: strings.TrimSpace(params)}
		if told {
			m.Needs = append([]string{}, strings.Fields(needs)...)
		}
		switch {
		case path == "" && !told:
		case !filepath.IsAbs(path) || strings.ContainsRune(path+params, 0):
			errs = append(errs, fmt.Errorf("line %d: %q is not an absolute path", n, path))
		default:
			modules = append(modules, m)
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
	// ENODEV, EOPNOTSUPP: the module is for something that this machine has not.
	if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("load module %s: %w", m.Path, err)
	}
	return nil
}
