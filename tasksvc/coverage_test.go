package tasksvc

import (
	"bufio"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/stretchr/testify/require"
)

const coverageFile = "../docs/oci-coverage.md"

// row is a line of docs/oci-coverage.md: a field, what is done with it, how it
// is shown.
type row struct{ status, shown string }

func readCoverage(t *testing.T) map[string]row {
	f, err := os.Open(coverageFile)
	require.NoError(t, err)
	defer f.Close()
	rows := map[string]row{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		cells := strings.Split(lines.Text(), "|")
		if len(cells) < 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		names := strings.Split(cells[1], ",")
		if strings.Contains(cells[1], "`= ") { // no field, and perhaps with commas
			names = cells[1:2]
		}
		for _, name := range names {
			name = strings.Trim(name, " `")
			_, twice := rows[name]
			require.False(t, twice, "two rows for %s", name)
			rows[name] = row{strings.TrimSpace(cells[2]), cells[3]}
		}
	}
	return rows
}

// fields lists a struct's fields by the names JSON has for them: a.b, a[].b for
// elements of a list, a{}.b for values of a map. Of a part for other platforms
// only the name is listed.
func fields(typ reflect.Type, prefix string, list map[string]bool) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		if f.Anonymous {
			fields(f.Type, prefix, list)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		name = prefix + name
		list[name] = true
		platform, limited := f.Tag.Lookup("platform")
		if limited && !slices.Contains(strings.Split(platform, ","), "linux") {
			continue
		}
		inner, suffix := f.Type, "."
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			switch inner.Kind() {
			case reflect.Slice:
				suffix = "[]."
			case reflect.Map:
				suffix = "{}."
			}
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			fields(inner, name+suffix, list)
		}
	}
}

// TestCoverage keeps docs/oci-coverage.md complete: every field of the
// specification's structs has a row, every row a status and tests that exist,
// and there is no row for what is not a field.
func TestCoverage(t *testing.T) {
	if _, err := os.Stat(coverageFile); err != nil {
		t.Skip("needs the source tree")
	}
	rows := readCoverage(t)
	known := map[string]bool{}
	fields(reflect.TypeFor[specs.Spec](), "", known)
	fields(reflect.TypeFor[features.Features](), "features: ", known)
	for name := range known {
		require.Contains(t, rows, name, "docs/oci-coverage.md has no row for it")
	}
	tests := testsOf(t, "..")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		require.True(t, known[name] || strings.HasPrefix(name, "="), "the row %s is not about a field", name)
		require.Contains(t, []string{"done", "refused", "ignored"}, r.status, name)
		named := regexp.MustCompile(`(\w+)\.((?:Test|Fuzz)\w+)`).FindAllStringSubmatch(r.shown, -1)
		require.NotEmpty(t, named, "%s: which test shows it?", name)
		for _, m := range named {
			require.Contains(t, tests[m[1]], m[2], "%s: there is no such test in package %s", name, m[1])
		}
	}
}

// testsOf finds the names of all tests below a directory, by package.
func testsOf(t *testing.T, root string) map[string][]string {
	tests := map[string][]string{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	files, err := filepath.Glob(root + "/*/*_test.go")
	require.NoError(t, err)
	deeper, err := filepath.Glob(root + "/*/*/*_test.go")
	require.NoError(t, err)
	for _, name := range append(files, deeper...) {
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		pkg := filepath.Base(filepath.Dir(name))
		for _, m := range function.FindAllSubmatch(data, -1) {
			tests[pkg] = append(tests[pkg], string(m[1]))
		}
	}
	return tests
}
