package initramfs

import (
	"bytes"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"vminit/internal/sys"
)

// index is what depmod(8) knows about one kernel. Module names are keys in
// their canonical form, with _ for -.
type index struct {
	mods           map[string]module
	soft           map[string]softdep
	aliases        []alias
	builtin        map[string]bool
	builtinAliases []alias
}

type module struct {
	path string   // relative to the release's directory
	deps []string // paths of what it needs, nearest first
}

type softdep struct{ pre, post []string }

// alias is a shell pattern and the module it stands for.
type alias struct{ pattern, module string }

// lookup turns a name into modules that have files. known is false if nobody
// has heard of the name; a built-in is known and has no file.
func (idx index) lookup(name string) (mods []string, known bool) {
	if m := canonical(name); idx.mods[m].path != "" {
		return []string{m}, true
	} else if idx.builtin[m] {
		return nil, true
	}
	for _, a := range idx.aliases {
		if _, ok := idx.mods[a.module]; ok && a.matches(name) && !slices.Contains(mods, a.module) {
			mods = append(mods, a.module)
		}
	}
	if len(mods) > 0 {
		return mods, true
	}
	return nil, slices.ContainsFunc(idx.builtinAliases, func(a alias) bool { return a.matches(name) })
}

// matches compares the way modprobe does: - and _ are the same.
func (a alias) matches(name string) bool {
	ok, err := path.Match(a.pattern, canonical(name))
	return err == nil && ok
}

// canonical writes a module's name the way the kernel does. Inside brackets of
// an alias pattern - is a range and stays.
func canonical(name string) string {
	b := []byte(name)
	inside := false
	for i, c := range b {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == '-' && !inside:
			b[i] = '_'
		}
	}
	return string(b)
}

// moduleName is the name of the module in the file p.
func moduleName(p string) string {
	base, _, _ := strings.Cut(path.Base(p), ".")
	return canonical(base)
}

// parseDep reads modules.dep: "path: path path...".
func parseDep(b []byte) (map[string]module, error) {
	mods := make(map[string]module)
	for line := range lines(b) {
		p, rest, ok := strings.Cut(line, ":")
		if !ok {
			return nil, sys.Invalidf("line %q has no colon", line)
		}
		deps := strings.Fields(rest)
		for _, f := range append([]string{p}, deps...) {
			if !filepath.IsLocal(f) {
				return nil, sys.Invalidf("module path %q leads out of the modules directory", f)
			}
		}
		mods[moduleName(p)] = module{path: p, deps: deps}
	}
	return mods, nil
}

// parseSoftdep reads modules.softdep: "softdep name pre: a b post: c". Words
// before the first pre: or post: mean nothing (modprobe.d(5)).
func parseSoftdep(b []byte) map[string]softdep {
	soft := make(map[string]softdep)
	for line := range lines(b) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "softdep" {
			continue
		}
		addSoftdep(soft, canonical(words[1]), words[2:])
	}
	return soft
}

func addSoftdep(soft map[string]softdep, name string, words []string) {
	s := soft[name]
	var list *[]string
	for _, w := range words {
		switch {
		case w == "pre:":
			list = &s.pre
		case w == "post:":
			list = &s.post
		case list != nil:
			*list = append(*list, w)
		}
	}
	soft[name] = s
}

// parseAlias reads modules.alias: "alias pattern module".
func parseAlias(b []byte) []alias {
	var list []alias
	for line := range lines(b) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == "alias" {
			list = append(list, alias{canonical(words[1]), canonical(words[2])})
		}
	}
	return list
}

// parseBuiltin reads modules.builtin, one path a line, into names.
func parseBuiltin(b []byte, names map[string]bool) {
	for line := range lines(b) {
		names[moduleName(line)] = true
	}
}

// parseModinfo reads modules.builtin.modinfo (kernel 5.2), NUL-terminated
// strings "module.key=value", for the aliases of built-ins. It adds their
// names too: they are complete there.
func parseModinfo(b []byte, names map[string]bool) []alias {
	var list []alias
	for rec := range strings.SplitSeq(string(b), "\x00") {
		key, value, ok := strings.Cut(rec, "=")
		mod, key, ok2 := strings.Cut(key, ".")
		if !ok || !ok2 {
			continue
		}
		names[canonical(mod)] = true
		if key == "alias" {
			list = append(list, alias{canonical(value), canonical(mod)})
		}
	}
	return list
}

// lines yields the lines of b that are neither empty nor a comment.
func lines(b []byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for l := range bytes.Lines(b) {
			s := strings.TrimSpace(string(l))
			if s != "" && s[0] != '#' && !yield(s) {
				return
			}
		}
	}
}
