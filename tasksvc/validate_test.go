package tasksvc

import (
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestValidateID(t *testing.T) {
	for _, id := range []string{"a", "A9", "c1", "a-b_c.d", "0", strings.Repeat("x", 76)} {
		require.NoError(t, validateID("container", id), id)
	}
	for _, id := range []string{
		"", ".", "..", "-", "a-", "-a", "a--b", "a-.b", "a/b", "../a", "a b", "a\x00", "ä", "a\n", strings.Repeat("x", 77),
	} {
		require.ErrorIs(t, validateID("container", id), sys.ErrInvalid, "%q", id)
	}
}

func TestValidateName(t *testing.T) {
	for _, name := range []string{"config.json", "a b", "..a", "ü", "-", strings.Repeat("x", 255)} {
		require.NoError(t, validateName("file", name), name)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/", `a\b`, "a\x00b", "a\nb", "\x7f", strings.Repeat("x", 256)} {
		require.ErrorIs(t, validateName("file", name), sys.ErrInvalid, "%q", name)
	}
}

// FuzzValidateID compares with the rule as containerd's documentation has it.
func FuzzValidateID(f *testing.F) {
	for _, s := range []string{"", "a", "a-b", "a--b", "-", "a.", strings.Repeat("a", 77), "a\n"} {
		f.Add(s)
	}
	rule := regexp.MustCompile(`\A[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*\z`)
	f.Fuzz(func(t *testing.T, id string) {
		err := validateID("x", id)
		if want := rule.MatchString(id) && len(id) <= 76; want != (err == nil) {
			t.Fatalf("%q: %v", id, err)
		}
		if err != nil && !errors.Is(err, sys.ErrInvalid) {
			t.Fatalf("%q: %v is not ErrInvalid", id, err)
		}
	})
}

func FuzzValidateName(f *testing.F) {
	for _, s := range []string{"", ".", "..", "a/..", "config.json", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if validateName("x", name) == nil && (filepath.Base(name) != name || !filepath.IsLocal(name)) {
			t.Fatalf("%q leaves its directory", name)
		}
	})
}
