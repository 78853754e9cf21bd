package rootfs

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

func FuzzOptions(f *testing.F) {
	f.Add(strings.Join(specOptions, "\n"))
	f.Add("lowerdir=/a\\,b:/c\ncontext=\"u:r:t:s0:c1,c2\",size=1m\nro\nrw\nrro\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		options := strings.Split(text, "\n")
		o, err := parseOptions(options)
		if err != nil {
			return
		}
		for _, d := range o.data {
			if d == "" || strings.ContainsAny(d, "\x00\n") {
				t.Fatalf("%q is handed to the kernel", d)
			}
		}
		if o.set&o.clr&^unix.MOUNT_ATTR__ATIME != 0 || o.rset&o.rclr&^unix.MOUNT_ATTR__ATIME != 0 {
			t.Fatal("set and cleared at once")
		}
		if _, err := parseMount("ext4", Mount{Source: "s", Options: options}); err != nil && err.Error() == "" {
			t.Fatal("an error without text")
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"{{ source 0 }}", "lowerdir={{overlay 2 0}},x={{ mount 1 }}", "{{", "}}", "{{ overlay 0 99999999999999999999 }}", "{{{{ mount 0 }}}}", "{ {mount 0}}"} {
		f.Add(s)
	}
	a := &assembly{bundle: "/b", done: []doneMount{{"/dev/a", "/b/mounts/0"}, {"{", "/b/mounts/1"}, {"c", "/b/mounts/2"}}}
	f.Fuzz(func(t *testing.T, s string) {
		out, err := a.expandString(s)
		if err != nil {
			if out != "" {
				t.Fatal("a result and an error")
			}
			return
		}
		if strings.Contains(out, "{{") || len(out) > maxExpanded+len(s)+64 {
			t.Fatalf("%q becomes %q", s, out)
		}
		if !strings.Contains(s, "{{") && out != s {
			t.Fatalf("%q becomes %q without a template", s, out)
		}
	})
}

func FuzzMakeDir(f *testing.F) {
	for _, s := range []string{"/b/mounts/1/upper:0755:1:2", "/b/mounts/1/../../x", "/b/mounts", "/b/mounts/a:b:c:d:e", ":::", "/b/mounts/1:99999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDir("/b/mounts", s)
		if err == nil && (!filepath.IsLocal(d.rel) || d.rel == "." || d.mode > 0o7777 || d.uid >= 1<<31 || d.gid >= 1<<31) {
			t.Fatalf("%q becomes %+v", s, d)
		}
	})
}

func FuzzShorten(f *testing.F) {
	f.Add("lowerdir=/b/m/1:/b/m/0,upperdir=/b/m/2/u,workdir=/b/m/2/w")
	f.Add("lowerdir=/::/a\\:b")
	f.Fuzz(func(t *testing.T, s string) {
		options := strings.Split(s, ",")
		dir, short := shorten(options)
		if len(short) != len(options) {
			t.Fatal("options are lost")
		}
		for i := range options {
			key, value, _ := strings.Cut(options[i], "=")
			if key != "lowerdir" || dir == "/" {
				continue
			}
			_, now, _ := strings.Cut(short[i], "=")
			was, is := strings.Split(value, ":"), strings.Split(now, ":")
			for j := range was {
				if was[j] != "" && filepath.Join(dir, is[j]) != was[j] {
					t.Fatalf("%q in %s becomes %q", was[j], dir, is[j])
				}
			}
		}
	})
}

func FuzzIDMap(f *testing.F) {
	f.Add("         0     100000      65536\n")
	f.Add("0 0 4294967295\n1 2 3\n")
	f.Fuzz(func(t *testing.T, s string) {
		if uid, err := rootIn("uid_map", s); err != nil && uid != 0 {
			t.Fatal("a result and an error")
		}
	})
}

// FuzzCompile compiles any config, with and without a user namespace: whatever
// it asks for, there is a plan that prints or an error, and it does not take
// for ever.
func FuzzCompile(f *testing.F) {
	for _, s := range []*specs.Spec{
		defaultSpec("rootfs"),
		{Root: &specs.Root{Path: "/", Readonly: true}, Mounts: []specs.Mount{mount("/a", "tmpfs", "", "tmpcopyup ro"), mount("a/b", "", "x", "rbind ridmap rro"),
			mount("/a", "", "", "remount size=1"), {Destination: "/c", Source: "y", Options: []string{"bind"}, UIDMappings: ids(0, 1, 1), GIDMappings: ids(0, 1, 1)}},
			Linux: &specs.Linux{RootfsPropagation: "rshared", MountLabel: "l", Devices: []specs.LinuxDevice{{Path: "/d", Type: "b", Major: 1}}, MaskedPaths: []string{"/..", "x"}, ReadonlyPaths: []string{""}}},
		{Root: &specs.Root{Path: "r"}, Mounts: []specs.Mount{mount("/o", "overlay", "", "lowerdir=/"+strings.Repeat("x", 300))}},
		{Root: &specs.Root{Path: "r"}, Mounts: []specs.Mount{mount(strings.Repeat("/a", 2000), "tmpfs", "", "")}},
		{},
	} {
		data, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, true)
		f.Add(data, false)
	}
	f.Fuzz(func(t *testing.T, data []byte, userNS bool) {
		spec := new(specs.Spec)
		if json.Unmarshal(data, spec) != nil {
			return
		}
		opt := paperGuest
		if userNS {
			opt.Namespaces |= unix.CLONE_NEWUSER
		}
		p, err := nsexec.NewProgram()
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		Compile(p, spec, opt)
		switch {
		case p.Err() != nil && p.Err().Error() == "":
			t.Fatal("an error without text")
		case p.Err() == nil && len(p.String()) == 0:
			t.Fatal("neither a plan nor an error")
		}
	})
}

// TestHugeConfigs: work stays bounded whatever a config repeats.
func TestHugeConfigs(t *testing.T) {
	many := make([]string, 200_000)
	for i := range many {
		many[i] = []string{"sync", "ro"}[i%2]
	}
	for name, s := range map[string]*specs.Spec{
		"deep path":     {Mounts: []specs.Mount{mount(strings.Repeat("/a", 1<<20), "tmpfs", "", "")}},
		"long path":     {Mounts: []specs.Mount{mount(strings.Repeat("/a", 2000), "tmpfs", "", "")}},
		"many mounts":   {Mounts: make([]specs.Mount, 200_000)},
		"many remounts": {Mounts: repeat(mount("/a", "", "", "remount ro"), maxMounts)},
		"many binds":    {Mounts: repeat(mount("/a", "", "/b", "bind ro"), maxMounts)},
		"many options":  {Mounts: []specs.Mount{{Destination: "/a", Type: "tmpfs", Options: many}}},
		"many masks":    {Linux: &specs.Linux{MaskedPaths: many, ReadonlyPaths: many}},
		"many devices":  {Linux: &specs.Linux{Devices: repeat(specs.LinuxDevice{Path: "/dev/a/b/c/d", Type: "p"}, 200_000)}},
	} {
		t.Run(name, func(t *testing.T) {
			s.Root = &specs.Root{Path: "rootfs"}
			p, err := nsexec.NewProgram()
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			began := soon()
			Compile(p, s, paperGuest)
			if took := soon().Sub(began).Seconds(); took > 2 {
				t.Fatalf("took %.1f s", took)
			}
			if p.Err() == nil {
				t.Logf("%d instructions", p.Len())
			} else if len(p.Err().Error()) > 10_000 {
				t.Fatalf("the error is %d bytes long", len(p.Err().Error()))
			}
		})
	}
}

func repeat[T any](x T, n int) []T {
	s := make([]T, n)
	for i := range s {
		s[i] = x
	}
	return s
}
