package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// QMP is a conversation with QEMU's monitor. All methods may be called
// concurrently.
type QMP struct {
	conn    net.Conn
	scan    *bufio.Scanner
	onEvent func(Event)

	mu      sync.Mutex // guards what follows, and writing to conn
	next    uint64
	waiting map[uint64]chan *qmpMessage
	ended   error // why no more answers come; nil while they do
	done    chan struct{}
}

// errQMPClosed is what commands under way get when QEMU goes away.
var errQMPClosed = errors.New("QEMU closed its monitor")

// newQMP greets QEMU on conn, which it owns from then on also if it fails.
// onEvent, if not nil, is called for each event, one after the other, and must
// not wait for a command. The end of ctx ends the greeting only.
func newQMP(ctx context.Context, conn net.Conn, onEvent func(Event)) (*QMP, error) {
	q := &QMP{
		conn: conn, scan: newQMPScanner(conn), onEvent: onEvent,
		waiting: map[uint64]chan *qmpMessage{}, done: make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	m, err := readQMP(q.scan)
	if err == nil && m.Greeting == nil {
		err = errors.New("QMP: no greeting")
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("talk to QEMU: %w", err)
	}
	go q.receive()
	if err := q.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = q.Close()
		return nil, err
	}
	return q, nil
}

// receive hands answers and events out until the connection ends.
func (q *QMP) receive() {
	defer close(q.done)
	for {
		m, err := readQMP(q.scan)
		if err != nil {
			q.end(err)
			return
		}
		switch {
		case m.Event != "":
			if q.onEvent != nil {
				q.onEvent(m.event(time.Now()))
			}
		case m.ID != nil:
			q.mu.Lock()
			answer := q.waiting[*m.ID]
			delete(q.waiting, *m.ID)
			q.mu.Unlock()
			if answer != nil {
				answer <- m // has room
			}
		}
	}
}

// end fails the commands under way and all to come.
func (q *QMP) end(err error) {
	_ = q.conn.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = fmt.Errorf("%w (%w)", errQMPClosed, err)
	for id, answer := range q.waiting {
		close(answer)
		delete(q.waiting, id)
	}
}

// Execute runs one command. args and result may be nil. A refusal of QEMU's is
// an error wrapping *QMPError.
func (q *QMP) Execute(ctx context.Context, command string, args, result any) error {
	return q.execute(ctx, command, args, result, nil)
}

// ExecuteWithFile is Execute of a command that takes a descriptor, of which
// QEMU gets a copy.
func (q *QMP) ExecuteWithFile(ctx context.Context, command string, args, result any, f *os.File) error {
	return q.execute(ctx, command, args, result, f)
}

func (q *QMP) execute(ctx context.Context, command string, args, result any, f *os.File) error {
	answer, id, err := q.send(command, args, f)
	if err != nil {
		return fmt.Errorf("QEMU: %s: %w", command, err)
	}
	select {
	case m, ok := <-answer:
		switch {
		case !ok:
			err = q.whyEnded()
		case m.Error != nil:
			err = m.Error
		case result != nil:
			err = json.Unmarshal(*m.Return, result)
		}
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("QEMU: %s: %w", command, err)
	}
	return nil
}

func (q *QMP) send(command string, args any, f *os.File) (<-chan *qmpMessage, uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended != nil {
		return nil, 0, q.ended
	}
	q.next++
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, q.next})
	if err != nil {
		return nil, 0, err
	}
	if err := q.write(append(b, '\n'), f); err != nil {
		return nil, 0, err
	}
	answer := make(chan *qmpMessage, 1)
	q.waiting[q.next] = answer
	return answer, q.next, nil
}

// write sends a line, and f's descriptor beside it (unix(7), SCM_RIGHTS).
func (q *QMP) write(line []byte, f *os.File) error {
	if f == nil {
		_, err := q.conn.Write(line)
		return err
	}
	conn, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("descriptors travel over unix sockets only")
	}
	_, _, err := conn.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
	runtime.KeepAlive(f)
	return err
}

func (q *QMP) whyEnded() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ended
}

// Close ends the conversation. Events that have not been heard are lost.
func (q *QMP) Close() error {
	err := q.conn.Close()
	<-q.done
	return err
}

// awaitEnd waits until QEMU has closed its end and all its events were heard.
func (q *QMP) awaitEnd() { <-q.done }
