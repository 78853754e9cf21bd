package seccomp

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	cacheEntries = 16       // most hosts use one or two profiles
	cacheMaxKey  = 64 << 10 // a larger profile is compiled every time
)

// Cache keeps the filters of the profiles used last: at most 16 of at most
// 64 KiB. Profiles are compared by content, all of it, so no bundle can make
// itself another's filter. The zero Cache is ready; its methods may be called
// concurrently.
type Cache struct {
	mu      sync.Mutex // guards entries
	entries []cached   // the latest used first
}

type cached struct {
	key    []byte
	filter *Filter
}

// Compile is like the function Compile. The filter is shared with other callers.
func (c *Cache) Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	if p == nil {
		return Compile(p)
	}
	key := appendProfile(make([]byte, 0, 8<<10), p)
	if f := c.find(key); f != nil {
		return f, nil
	}
	f, err := Compile(p)
	if err == nil && len(key) <= cacheMaxKey {
		c.insert(cached{slices.Clone(key), f})
	}
	return f, err
}

func (c *Cache) find(key []byte) *Filter {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.entries, func(e cached) bool { return bytes.Equal(e.key, key) })
	if i < 0 {
		return nil
	}
	e := c.entries[i]
	copy(c.entries[1:], c.entries[:i])
	c.entries[0] = e
	return e.filter
}

func (c *Cache) insert(e cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) == cacheEntries {
		c.entries = c.entries[:cacheEntries-1]
	}
	c.entries = slices.Insert(c.entries, 0, e)
}

// appendProfile writes a profile down so that no two profiles read alike:
// every string and list comes after its length.
func appendProfile(b []byte, p *specs.LinuxSeccomp) []byte {
	b = appendString(b, p.DefaultAction)
	b = appendErrno(b, p.DefaultErrnoRet)
	b = appendList(b, p.Architectures)
	if p.Flags == nil { // means something else than no flags
		b = append(b, 0)
	} else {
		b = appendList(append(b, 1), p.Flags)
	}
	b = appendString(b, p.ListenerPath)
	b = appendString(b, p.ListenerMetadata)
	b = binary.AppendUvarint(b, uint64(len(p.Syscalls)))
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		b = appendList(b, s.Names)
		b = appendString(b, s.Action)
		b = appendErrno(b, s.ErrnoRet)
		b = binary.AppendUvarint(b, uint64(len(s.Args)))
		for _, a := range s.Args {
			b = binary.AppendUvarint(b, uint64(a.Index))
			b = binary.AppendUvarint(b, a.Value)
			b = binary.AppendUvarint(b, a.ValueTwo)
			b = appendString(b, a.Op)
		}
	}
	return b
}

func appendString[S ~string](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendList[S ~string](b []byte, l []S) []byte {
	b = binary.AppendUvarint(b, uint64(len(l)))
	for _, s := range l {
		b = appendString(b, s)
	}
	return b
}

func appendErrno(b []byte, e *uint) []byte {
	if e == nil {
		return append(b, 0)
	}
	return binary.AppendUvarint(append(b, 1), uint64(*e))
}
