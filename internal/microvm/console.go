package microvm

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
	"unicode"
)

const (
	// maxConsoleLog bounds console.log in bytes. When it is full it becomes
	// console.log.1 and a new one begins: a guest cannot fill the host's /run.
	maxConsoleLog = 4 << 20
	// tailSize is how much of the console's end is kept for error messages.
	tailSize = 8 << 10
	// clientBacklog is how many chunks a client may be behind before it loses
	// some: neither the guest nor other clients wait for it.
	clientBacklog = 64
	// endGrace is how long clients have, once the console has ended, to take what
	// they have not read yet. The machine's end waits for them, and one that is
	// stopped (Ctrl-Z, a pager at rest) would never be done.
	endGrace = time.Second
)

// console is the guest's serial port: what it writes goes to a log, to those
// who have connected, and its end is kept; what they type goes to it.
type console struct {
	guest net.Conn
	path  string // of the log
	log   *os.File
	done  chan struct{} // closed when QEMU has closed its end

	mu      sync.Mutex // guards what follows
	size    int64      // of the log
	tail    []byte
	first   time.Time                // of the first byte
	clients map[chan []byte]net.Conn // what each is to be sent
	ended   bool
}

// newConsole starts to read guest, which it owns.
func newConsole(guest net.Conn, path string) (*console, error) {
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	c := &console{guest: guest, path: path, log: log, done: make(chan struct{}), clients: map[chan []byte]net.Conn{}}
	go c.run()
	return c, nil
}

func (c *console) run() {
	defer close(c.done)
	buf := make([]byte, 16<<10)
	for {
		n, err := c.guest.Read(buf)
		if n > 0 {
			c.take(buf[:n])
		}
		if err != nil {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for client, conn := range c.clients {
		_ = conn.SetWriteDeadline(time.Now().Add(endGrace))
		close(client)
	}
	clear(c.clients)
	_ = c.log.Close()
}

// take records what the guest wrote.
func (c *console) take(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first.IsZero() {
		c.first = time.Now()
	}
	c.tail = append(c.tail, b...)
	if len(c.tail) > 2*tailSize {
		c.tail = append(c.tail[:0], c.tail[len(c.tail)-tailSize:]...)
	}
	c.append(b)
	if len(c.clients) == 0 {
		return
	}
	b = bytes.Clone(b)
	for client := range c.clients {
		select {
		case client <- b:
		default: // too slow
		}
	}
}

// append writes to the log; a full disk costs the log, not the guest. The
// caller holds mu.
func (c *console) append(b []byte) {
	if c.size+int64(len(b)) > maxConsoleLog && os.Rename(c.path, c.path+".1") == nil {
		if log, err := os.OpenFile(c.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600); err == nil {
			_ = c.log.Close()
			c.log, c.size = log, 0
		}
	}
	n, _ := c.log.Write(b)
	c.size += int64(n)
}

// firstByte is when the guest first wrote something; zero if it has not.
func (c *console) firstByte() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.first
}

// lastLines returns the last n lines, each with an indent, for error messages;
// "" if there are none.
func (c *console) lastLines(n int) string {
	c.mu.Lock()
	tail := bytes.Clone(c.tail)
	c.mu.Unlock()
	return lastLines(tail, n)
}

// lastLines cuts the last n lines of text, without control characters that
// could play tricks on a terminal.
func lastLines(text []byte, n int) string {
	var out []byte
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	for _, line := range lines[max(0, len(lines)-n):] {
		line = bytes.Map(func(r rune) rune {
			if unicode.IsControl(r) && r != '\t' {
				return -1
			}
			return r
		}, bytes.TrimSpace(line))
		if len(line) > 0 {
			out = append(append(out, "\n  | "...), line...)
		}
	}
	return string(out)
}

// close ends the console though QEMU may not have, and disconnects its clients.
func (c *console) close() {
	_ = c.guest.Close()
	<-c.done
}

// serve connects clients until ln is closed, and waits for them to end, which
// they do with the console.
func (c *console) serve(ln net.Listener) error {
	if err := acceptAll(ln, c.attach); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return nil
}

// attach serves one client, which it owns, until it or the guest ends.
func (c *console) attach(conn net.Conn) {
	defer conn.Close()
	output := make(chan []byte, clientBacklog)
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.clients[output] = conn
	c.mu.Unlock()

	var typing sync.WaitGroup
	typing.Go(func() {
		_, _ = io.Copy(c.guest, conn)
		c.detach(output)
	})
	for b := range output {
		if _, err := conn.Write(b); err != nil {
			break
		}
	}
	c.detach(output)
	_ = conn.Close()
	typing.Wait()
}

// detach takes a client from the list and ends its output, once.
func (c *console) detach(client chan []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.clients[client]; ok {
		delete(c.clients, client)
		close(client)
	}
}
