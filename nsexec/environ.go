package nsexec

import (
	"slices"
	"strings"

	"vminit/internal/sys"
)

const (
	homeName = "HOME="
	maxHome  = 4096 // bytes with the NUL; PATH_MAX, linux/limits.h
)

// NeedsHome reports whether an environment has no HOME, or an empty one, so
// that the runtime supplies it.
func NeedsHome(env []string) bool {
	return !slices.ContainsFunc(env, func(e string) bool { return len(e) > len(homeName) && strings.HasPrefix(e, homeName) })
}

// environ puts the environment into the program's memory, with home for HOME if
// it is needed; room is left for another that SetHome may put there.
func (p *Program) environ(env []string, home string) Arg {
	if home == "" || !NeedsHome(env) {
		return p.StrVec(env)
	}
	w := make([]uint64, 0, len(env)+2)
	for _, e := range env {
		if e != homeName {
			w = append(w, p.Str(e).v)
		}
	}
	slot := p.Buffer(len(homeName) + maxHome)
	p.homeVar = slot.Plus(len(homeName))
	if p.err == nil {
		_ = p.Write(slot, []byte(homeName))
	}
	if err := p.SetHome(home); err != nil {
		p.Fail(err)
	}
	return p.Words(append(w, slot.v, 0)...)
}

// SetHome changes the HOME that Finish supplied, while the child waits at a
// gate; if it supplied none, nothing happens.
func (p *Program) SetHome(home string) error {
	if p.homeVar == Nil || p.err != nil {
		return nil
	}
	if len(home) >= maxHome || strings.IndexByte(home, 0) >= 0 {
		return sys.Invalidf("home directory %.64q of %d bytes", home, len(home))
	}
	return p.Write(p.homeVar, append([]byte(home), 0))
}
