package vmtest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Canary is what must be the same before and after anything a workload does.
type Canary struct{ text string }

// Canary looks, from a container with every right.
func (g *Guest) Canary(ctx context.Context, t testing.TB) Canary {
	t.Helper()
	p, err := g.Create(ctx, "c"+NewID(), Privileged("/bin/probe", "canary", "/mnt"), false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	require.Contains(t, r.Stdout, "/mnt/init")
	var lines strings.Builder // all but the looker's own mounts
	for line := range strings.Lines(r.Stdout) {
		if !strings.Contains(line, "/bundles/"+p.ID()+"/") {
			lines.WriteString(line)
		}
	}
	return Canary{lines.String()}
}

// Alive looks again.
func (g *Guest) Alive(ctx context.Context, t testing.TB, before Canary) {
	t.Helper()
	now := g.Canary(ctx, t)
	missing, added := before.without(now), now.without(before)
	if len(missing)+len(added) > 0 {
		t.Errorf("the guest has changed: gone are\n%s\nnew are\n%s", strings.Join(missing, ""), strings.Join(added, ""))
	}
}

// without returns the lines that other does not have.
func (c Canary) without(other Canary) []string {
	has := map[string]bool{}
	for line := range strings.Lines(other.text) {
		has[line] = true
	}
	return slices.DeleteFunc(slices.Collect(strings.Lines(c.text)), func(line string) bool { return has[line] })
}
