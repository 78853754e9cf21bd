package vmtest

import "testing"

// Looking changes nothing, and what is there at rest is told apart from noise.
func TestCanaryIsStable(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	before := g.Canary(ctx, t)
	base := g.Baseline(ctx, t)
	g.Alive(ctx, t, before)
	g.Restored(ctx, t, base)
}
