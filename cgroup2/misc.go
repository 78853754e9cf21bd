package cgroup2

import "slices"

// MiscStats counts one resource of the misc controller, such as SEV address
// space ids (Linux 5.13). It can be limited through unified.
type MiscStats struct {
	Name           string
	Current, Limit uint64
}

// readMisc joins misc.current and misc.max. The latter may name resources the
// former does not.
func readMisc(r *statReader) []MiscStats {
	var all []MiscStats
	find := func(name []byte) *MiscStats {
		i := slices.IndexFunc(all, func(s MiscStats) bool { return s.Name == string(name) })
		if i < 0 {
			i = len(all)
			all = append(all, MiscStats{Name: string(name)})
		}
		return &all[i]
	}
	r.file("misc.current", func(data []byte) error {
		return eachKey(data, func(key []byte, value uint64) { find(key).Current = value })
	})
	r.file("misc.max", func(data []byte) error {
		return eachKey(data, func(key []byte, value uint64) { find(key).Limit = value })
	})
	return all
}
