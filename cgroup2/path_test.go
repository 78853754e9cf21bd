package cgroup2

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestSplitPath(t *testing.T) {
	long := strings.Repeat("x", 255)
	tests := []struct {
		path string
		want []string // nil: refused
	}{
		{"a", []string{"a"}},
		{"/a", []string{"a"}},
		{"/default/c1", []string{"default", "c1"}},
		{"system.slice:runc:c1", []string{"system.slice:runc:c1"}},
		{"...", []string{"..."}},
		{long, []string{long}},
		{"", nil},
		{"/", nil},
		{"//a", nil},
		{"a/", nil},
		{"a//b", nil},
		{".", nil},
		{"..", nil},
		{"a/../b", nil},
		{"/../a", nil},
		{"a/./b", nil},
		{"a\x00b", nil},
		{"a\nb", nil},
		{long + "x", nil},
		{strings.Repeat("a/", maxDepth-1) + "a", strings.Split(strings.Repeat("a/", maxDepth-1)+"a", "/")},
		{strings.Repeat("a/", maxDepth) + "a", nil},
		{strings.Repeat(long+"/", 4) + "a", nil},
	}
	for _, tt := range tests {
		got, err := splitPath(tt.path)
		require.Equal(t, tt.want, got, "%q", tt.path)
		if tt.want == nil {
			require.ErrorIs(t, err, sys.ErrInvalid, "%q", tt.path)
		}
	}
}

func FuzzSplitPath(f *testing.F) {
	for _, s := range []string{"/a/b", "..", "a//b", "slice:p:n", "a/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		parts, err := splitPath(p)
		if (parts == nil) != (err != nil) {
			t.Fatalf("%q: %v, %v", p, parts, err)
		}
		for _, part := range parts {
			if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00\n") {
				t.Fatalf("%q: component %q", p, part)
			}
		}
		if err == nil && strings.Join(parts, "/") != strings.TrimPrefix(p, "/") {
			t.Fatalf("%q became %q", p, parts)
		}
	})
}
