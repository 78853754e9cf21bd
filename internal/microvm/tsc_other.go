//go:build !amd64

package microvm

// rdtsc is 0: only x86 has a time stamp counter.
func rdtsc() uint64 { return 0 }
