package microvm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"vminit/internal/sys"
)

// maxQMPLine bounds one message of QEMU's in bytes; the longest answers that
// are asked for here are some kilobytes.
const maxQMPLine = 1 << 20

// qmpMessage is one line of QMP: a greeting, an answer or an event (QEMU's
// docs/interop/qmp-spec).
type qmpMessage struct {
	Greeting *json.RawMessage `json:"QMP"`

	ID     *uint64          `json:"id"`
	Return *json.RawMessage `json:"return"`
	Error  *QMPError        `json:"error"`

	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp qmpTime         `json:"timestamp"`
}

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *QMPError) Error() string { return e.Desc }

// qmpTime is when an event happened by the host's clock; -1 if QEMU cannot tell.
type qmpTime struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// Event is something QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time
}

// parseQMP decodes one line. It is nil exactly if there is an error.
func parseQMP(line []byte) (*qmpMessage, error) {
	m := new(qmpMessage)
	if err := json.Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("QMP: %w", err)
	}
	kinds := 0
	for _, has := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if has {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, sys.Invalidf("QMP: %.80q is not a greeting, an answer or an event", line)
	}
	return m, nil
}

// event is the message as an Event, received now.
func (m *qmpMessage) event(now time.Time) Event {
	at := now
	if m.Timestamp.Seconds > 0 {
		at = time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
	}
	return Event{Name: m.Event, Data: m.Data, At: at}
}

// readQMP returns the next message. A line longer than maxQMPLine is an error.
func readQMP(s *bufio.Scanner) (*qmpMessage, error) {
	for s.Scan() {
		if len(s.Bytes()) > 0 {
			return parseQMP(s.Bytes())
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("QMP: %w", err)
	}
	return nil, io.EOF
}

func newQMPScanner(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxQMPLine)
	return s
}
