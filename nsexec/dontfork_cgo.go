//go:build cgo

package nsexec

// dontFork does nothing in cgo builds, see dontfork.go.
type dontFork struct{}

func (*dontFork) grown() bool    { return false }
func (*dontFork) exclude() error { return nil }
