package nsexec

import "math"

// What this package understands of the spec, for those who want to know
// beforehand.

// Capabilities returns the names of all capabilities.
func Capabilities() []string { return capList(math.MaxUint64) }

// MemoryModes returns the modes of linux.memoryPolicy.
func MemoryModes() []string { return namesOf(memoryModes) }

// MemoryFlags returns the flags of linux.memoryPolicy.
func MemoryFlags() []string { return namesOf(memoryFlags) }

func namesOf(table []flagName) []string {
	names := make([]string, 0, len(table))
	for _, f := range table {
		names = append(names, f.name)
	}
	return names
}
