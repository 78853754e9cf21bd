package tasksvc

import (
	"strconv"
	"strings"
)

// openMetrics writes OpenMetrics 1.0 text (the specification of that name).
type openMetrics struct {
	b      strings.Builder
	name   string // of the family being written
	suffix string // of its samples
}

// label is a name and a value.
type label struct{ name, value string }

// gauge begins a family of values that go up and down.
func (m *openMetrics) gauge(name, help string) { m.family(name, "gauge", "", help) }

// counter begins a family of values that only grow.
func (m *openMetrics) counter(name, help string) { m.family(name, "counter", "_total", help) }

func (m *openMetrics) family(name, kind, suffix, help string) {
	m.name, m.suffix = name, suffix
	m.b.WriteString("# TYPE " + name + " " + kind + "\n")
	for _, unit := range []string{"bytes", "seconds"} {
		if strings.HasSuffix(name, "_"+unit) {
			m.b.WriteString("# UNIT " + name + " " + unit + "\n")
		}
	}
	m.b.WriteString("# HELP " + name + " " + help + "\n")
}

// value writes a sample of the family.
func (m *openMetrics) value(v uint64, labels ...label) {
	m.sample(strconv.FormatUint(v, 10), labels)
}

// seconds writes a sample given in units of one per scale seconds.
func (m *openMetrics) seconds(v, scale uint64, labels ...label) {
	m.sample(strconv.FormatFloat(float64(v)/float64(scale), 'f', -1, 64), labels)
}

func escapeLabel(s string) string {
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(s)
}

func (m *openMetrics) sample(value string, labels []label) {
	m.b.WriteString(m.name + m.suffix)
	for i, l := range labels {
		m.b.WriteByte("{,"[min(i, 1)])
		m.b.WriteString(l.name + `="` + escapeLabel(l.value) + `"`)
	}
	if len(labels) > 0 {
		m.b.WriteByte('}')
	}
	m.b.WriteString(" " + value + "\n")
}

// text ends the text.
func (m *openMetrics) text() string { return m.b.String() + "# EOF\n" }
