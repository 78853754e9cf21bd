package seccomp

import (
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func TestCache(t *testing.T) {
	var c Cache
	p := containerd(t)
	first, err := c.Compile(p)
	require.NoError(t, err)
	again, err := c.Compile(containerd(t))
	require.NoError(t, err)
	require.Same(t, first, again)

	p.Syscalls[3].Args[0].Value++
	other, err := c.Compile(p)
	require.NoError(t, err)
	require.NotSame(t, first, other)

	_, err = c.Compile(&specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_WHATEVER"})
	require.Error(t, err)
	_, err = c.Compile(nil)
	require.Error(t, err)
	require.Len(t, c.entries, 2)
}

func TestCacheIsBounded(t *testing.T) {
	var c Cache
	errno := func(n uint) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &n}
	}
	kept, err := c.Compile(errno(1))
	require.NoError(t, err)
	for n := uint(2); n < 3*cacheEntries; n++ {
		_, err := c.Compile(errno(n))
		require.NoError(t, err)
		f, err := c.Compile(errno(1)) // used all the time: stays
		require.NoError(t, err)
		require.Same(t, kept, f)
		require.LessOrEqual(t, len(c.entries), cacheEntries)
	}
	big := errno(1)
	big.ListenerPath = strings.Repeat("x", cacheMaxKey)
	_, err = c.Compile(big)
	require.NoError(t, err)
	for _, e := range c.entries {
		require.LessOrEqual(t, len(e.key), cacheMaxKey)
	}
}

func TestCacheConcurrently(t *testing.T) {
	var c Cache
	p := containerd(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range uint(20) {
				_, err := c.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &n})
				if err == nil {
					_, err = c.Compile(p)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestKeyCoversProfile: a change of any field of the profile is another key.
func TestKeyCoversProfile(t *testing.T) {
	require.Equal(t, 7, reflect.TypeFor[specs.LinuxSeccomp]().NumField())
	require.Equal(t, 4, reflect.TypeFor[specs.LinuxSyscall]().NumField())
	require.Equal(t, 4, reflect.TypeFor[specs.LinuxSeccompArg]().NumField())

	one, two := uint(1), uint(2)
	full := func() *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{
			DefaultAction: specs.ActErrno, DefaultErrnoRet: &one,
			Architectures: []specs.Arch{"a"}, Flags: []specs.LinuxSeccompFlag{"f"}, ListenerPath: "p", ListenerMetadata: "m",
			Syscalls: []specs.LinuxSyscall{{Names: []string{"x", "y"}, Action: "act", ErrnoRet: &one, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "op"}}}},
		}
	}
	keys := map[string]int{}
	for i, change := range []func(*specs.LinuxSeccomp){
		func(p *specs.LinuxSeccomp) {},
		func(p *specs.LinuxSeccomp) { p.DefaultAction = "other" },
		func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = &two },
		func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = nil },
		func(p *specs.LinuxSeccomp) { p.Architectures = nil },
		func(p *specs.LinuxSeccomp) { p.Flags = nil },
		func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{} },
		func(p *specs.LinuxSeccomp) { p.ListenerPath, p.ListenerMetadata = "pm", "" },
		func(p *specs.LinuxSeccomp) { p.Syscalls = nil },
		func(p *specs.LinuxSeccomp) { p.Syscalls = append(p.Syscalls, p.Syscalls[0]) },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = []string{"xy"} },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = []string{"x", "y", ""} },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = "other" },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].ErrnoRet = nil },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args = nil },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Index = 2 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Value = 3 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].ValueTwo = 2 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Op = "po" },
	} {
		p := full()
		change(p)
		key := string(appendProfile(nil, p))
		require.NotContains(t, keys, key, "change %d", i)
		keys[key] = i
	}
}
