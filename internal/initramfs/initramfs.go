// Package initramfs builds the guest image of a microVM: a cpio archive with
// vminitd as /init, the kernel modules it loads and the lists that tell it
// which and in what order. It runs on the host, needs no privileges and no
// tools, and the same inputs give the same bytes. It only reads its inputs; it
// must never depend on the time, the user or the order of a directory.
package initramfs

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"vminit/internal/sys"
)

// Where vminitd finds its load lists. Each line is the absolute path of a
// module and, after <, the names of those modules of the list that it needs,
// which stand in lines before it: what does not need each other may be loaded
// at the same time. # starts a comment. A list that would be empty is not there.
const (
	// BootList is loaded before vminitd serves.
	BootList = "/etc/vminit/modules"
	// LateList is loaded while vminitd serves; the first container waits for it.
	LateList = "/etc/vminit/modules.late"
	// RestList is loaded last; only containers that ask for more than a root
	// file system wait for it.
	RestList = "/etc/vminit/modules.rest"
)

// Config says what goes into an image.
type Config struct {
	// Init is the host path of the program that becomes /init. It must be
	// statically linked, or Add must bring its interpreter.
	Init string

	// KernelRelease and ModulesDir say where modules come from:
	// ModulesDir/KernelRelease/modules.dep. An empty KernelRelease means a
	// kernel that needs no modules; an empty ModulesDir means /lib/modules.
	KernelRelease string
	ModulesDir    string

	// Modules are loaded before vminitd serves, LateModules while it does,
	// RestModules after that: see [DefaultModules], [DefaultLateModules],
	// [DefaultRestModules] and [ResolveModules].
	Modules     []string
	LateModules []string
	RestModules []string

	// StripSignatures leaves out the modules' signatures, which the kernel
	// then does not check: under TCG that brings what is loaded before serving
	// from 120 to 80 ms. The price: the guest kernel is tainted (E), says so
	// once, and one that enforces signatures refuses to load them. Their type
	// information (.BTF), which the kernel would read through, is left out with
	// them: tracing programs cannot attach to functions of modules by type.
	StripSignatures bool

	// Add brings further files and directories.
	Add []File

	// Compression is one of [Zstd], [Gzip], [None]; empty means Zstd.
	Compression string
}

// Usual is the image that guests usually have, not compressed because it is used
// where it is made: for a kernel whose modules are installed under release, with
// all that containers may want, and else, or if release is empty, with none.
func Usual(init, release string) Config {
	c := Config{Init: init, Compression: None}
	if HasModules(release) {
		c.KernelRelease = release
		c.Modules, c.LateModules, c.RestModules = DefaultModules(), DefaultLateModules(), DefaultRestModules()
	}
	return c
}

// File is a host file, symbolic link or directory (with all that is in it) and
// the absolute path it gets in the guest. Modes are kept, owners become 0:0.
type File struct {
	Src, Dst string
}

// ParseFile reads the SRC:DST form. The last colon separates.
func ParseFile(s string) (File, error) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || !path.IsAbs(s[i+1:]) {
		return File{}, sys.Invalidf("file %q: want SRC:DST with an absolute DST, e.g. ./tool:/bin/tool", s)
	}
	return File{Src: s[:i], Dst: s[i+1:]}, nil
}

// Info describes an image that was built.
type Info struct {
	Size     int64  // bytes written
	Unpacked int64  // bytes of the archive before compression
	SHA256   string // of the bytes written, in hex
	Entries  int    // files, directories, links and nodes

	// Guest paths, in load order.
	Modules, LateModules, RestModules []string
}

// Build writes the image c describes to w. On error w holds an unusable part.
func Build(w io.Writer, c Config) (Info, error) {
	t := skeleton()
	if err := t.addInit(c.Init); err != nil {
		return Info{}, err
	}
	var info Info
	var err error
	if err = t.addModules(c, &info); err != nil {
		return Info{}, err
	}
	for _, f := range c.Add {
		if err := t.addHost(f.Src, f.Dst); err != nil {
			return Info{}, err
		}
	}
	if err := t.checkInterpreter(c.Init); err != nil {
		return Info{}, err
	}

	sum := sha256.New()
	out := &countingWriter{w: io.MultiWriter(w, sum)}
	z, err := newCompressor(out, c.Compression)
	if err != nil {
		return Info{}, err
	}
	archive := &countingWriter{w: z}
	if err := t.write(archive); err != nil {
		return Info{}, err
	}
	if err := z.Close(); err != nil {
		return Info{}, fmt.Errorf("compress initramfs: %w", err)
	}
	info.Size, info.Unpacked = out.n, archive.n
	info.SHA256 = hex.EncodeToString(sum.Sum(nil))
	info.Entries = len(t)
	return info, nil
}

// addInit puts the host file src at /init.
func (t tree) addInit(src string) error {
	if src == "" {
		return sys.Invalidf("initramfs: no init given: name a static vminitd binary")
	}
	fi, err := os.Stat(src)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return sys.Invalidf("init %s: not a regular file", src)
	}
	return t.add("/init", entry{mode: modeReg | 0o755, src: src, size: fi.Size()})
}

// checkInterpreter refuses a dynamically linked init whose loader is not in
// the image: the guest kernel would panic with nothing but "error -2".
func (t tree) checkInterpreter(init string) error {
	f, err := elf.Open(init)
	if err != nil {
		return nil // a script, or for the kernel to judge
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("init %s: %w", init, err)
		}
		interp := strings.TrimRight(string(b), "\x00")
		if _, ok := t[path.Clean(interp)]; !ok {
			return sys.Invalidf("init %s: dynamically linked (needs %s): build it with CGO_ENABLED=0", init, interp)
		}
	}
	return nil
}
