package rootfs

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"vminit/internal/sys"
)

// expand fills the templates of a format/TYPE mount from the mounts already
// done: {{ source N }}, {{ target N }}, {{ mount N }} (where N is mounted) and
// {{ overlay A B }} (the mount points of A to B, joined by colons, descending
// when A > B).
func (a *assembly) expand(m *Mount) (err error) {
	for _, field := range []*string{&m.Source, &m.Target} {
		if *field, err = a.expandString(*field); err != nil {
			return err
		}
	}
	options := make([]string, len(m.Options))
	for i, o := range m.Options {
		if options[i], err = a.expandString(o); err != nil {
			return err
		}
	}
	m.Options = options
	return nil
}

// maxExpanded bounds what a template may grow to: more than any mount takes.
const maxExpanded = 1 << 20

func (a *assembly) expandString(s string) (string, error) {
	var out strings.Builder
	for rest := s; ; {
		before, after, found := strings.Cut(rest, "{{")
		out.WriteString(before)
		if !found {
			break
		}
		expr, tail, closed := strings.Cut(after, "}}")
		if !closed {
			return "", sys.Invalidf("template %q: {{ without }}", s)
		}
		value, err := a.evaluate(strings.Fields(expr))
		if err != nil {
			return "", fmt.Errorf("template %q: %w", s, err)
		}
		out.WriteString(value)
		if out.Len() > maxExpanded {
			return "", sys.Invalidf("template %q: result is too long", s)
		}
		rest = tail
	}
	if strings.Contains(out.String(), "{{") {
		return "", sys.Invalidf("template %q: {{ is left in the result", s)
	}
	return out.String(), nil
}

func (a *assembly) evaluate(words []string) (string, error) {
	if len(words) == 0 {
		return "", sys.Invalidf("empty expression")
	}
	var n []int
	for _, w := range words[1:] {
		i, err := strconv.Atoi(w)
		if err != nil || i < 0 || i >= len(a.done) {
			return "", sys.Invalidf("%q is not the number of an earlier mount (there are %d)", w, len(a.done))
		}
		n = append(n, i)
	}
	switch {
	case words[0] == "source" && len(n) == 1:
		return a.done[n[0]].source, nil
	case (words[0] == "target" || words[0] == "mount") && len(n) == 1:
		return a.done[n[0]].target, nil
	case words[0] == "overlay" && len(n) == 2:
		return a.join(n[0], n[1]), nil
	}
	return "", sys.Invalidf("%q is not source N, target N, mount N or overlay A B", strings.Join(words, " "))
}

func (a *assembly) join(from, to int) string {
	step := 1
	if from > to {
		step = -1
	}
	var dirs []string
	for i := from; ; i += step {
		dirs = append(dirs, filepath.Clean(a.done[i].target))
		if i == to {
			return strings.Join(dirs, ":")
		}
	}
}
