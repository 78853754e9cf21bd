package boot

import (
	"fmt"
	"os"
	"strings"
)

// Param is one parameter of the kernel command line; Value is empty for a bare
// word.
type Param struct {
	Key, Value string
}

// ReadCmdline returns the kernel's own parameters, those before " -- ", from
// /proc/cmdline.
func ReadCmdline() ([]Param, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the kernel command line: %w", err)
	}
	return ParseCmdline(string(b)), nil
}

// ParseCmdline splits a kernel command line as the kernel does (lib/cmdline.c,
// next_arg): parameters are separated by white space, double quotes protect
// white space, and a quote at the start of a parameter or of its value is taken
// off together with the one at its end. "--" ends the kernel's part.
func ParseCmdline(line string) []Param {
	var params []Param
	for {
		line = strings.TrimLeft(line, spaces)
		if line == "" {
			return params
		}
		var word string
		word, line = nextWord(line)
		if word == "--" {
			return params
		}
		key, value, _ := strings.Cut(unquote(word), "=")
		params = append(params, Param{key, unquote(value)})
	}
}

const spaces = " \t\n\v\f\r\x00"

// nextWord cuts line at the first white space outside double quotes.
func nextWord(line string) (word, rest string) {
	quoted := false
	for i := range len(line) {
		switch {
		case line[i] == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(spaces, line[i]) >= 0:
			return line[:i], line[i:]
		}
	}
	return line, ""
}

func unquote(s string) string {
	if rest, ok := strings.CutPrefix(s, `"`); ok {
		return strings.TrimSuffix(rest, `"`)
	}
	return s
}

// Values returns the values of every occurrence of key, in order.
func Values(params []Param, key string) []string {
	var values []string
	for _, p := range params {
		if p.Key == key {
			values = append(values, p.Value)
		}
	}
	return values
}
