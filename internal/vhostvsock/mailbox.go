package vhostvsock

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// command is what other goroutines ask of a session's loop.
type command struct {
	kind commandKind
	dial *dialRequest // cmdDial, cmdCancel
	flow *flow        // cmdExpire
}

type commandKind uint8

const (
	cmdStop   commandKind = iota // end the session
	cmdDial                      // open a connection; exactly one result is sent
	cmdCancel                    // give cmdDial up, if it has no result yet
	cmdExpire                    // closeTimeout of a flow
)

// mailbox carries commands to the loop, which watches its eventfd.
type mailbox struct {
	event int // eventfd; -1 when closed

	mu     sync.Mutex // guards what follows, and event
	queue  []command
	closed bool
}

func newMailbox() (*mailbox, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &mailbox{event: fd}, nil
}

// post leaves a command for the loop; false if the loop has ended and will not see it.
func (m *mailbox) post(c command) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.queue = append(m.queue, c)
	if len(m.queue) == 1 {
		signal(m.event)
	}
	return true
}

// collect returns the commands left so far.
func (m *mailbox) collect() []command {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queue
	m.queue = nil
	return q
}

// close refuses further commands and returns those that nobody has seen.
func (m *mailbox) close() []command {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	replaceFd(&m.event, -1)
	q := m.queue
	m.queue = nil
	return q
}
