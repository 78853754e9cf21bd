// Command guest is /init of the virtual machine in which the vsock device is tested:
// it loads the modules beside it and serves one small protocol per port (see serve).
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("guest: error:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	list, err := os.ReadFile("/modules/list")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		if err := load("/modules/" + name); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return serve()
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// serve answers on ports 1000 and up until told to power off; on 999 when it is ready.
func serve() error {
	end := make(chan struct{})
	services := []func(*vsock.Conn){
		echo,                             // 1000: everything comes back, half-close included
		hash,                             // 1001: everything in, then its SHA-256 out
		count,                            // 1002: everything in, then the number of bytes out
		random,                           // 1003: number n in, then n bytes of Stream(n) out
		zeros,                            // 1004: number n in, then n zero bytes out
		echo,                             // 1005: echo with a buffer of 4 KiB
		connect,                          // 1006: port, connections, bytes in; then the guest dials, failures out
		abandon,                          // 1007: closes after one byte, without reading the rest
		hold,                             // 1008: reads nothing until told by any connection to 1009
		release,                          // 1009
		func(*vsock.Conn) { close(end) }, // 1010: power off
		func(*vsock.Conn) { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }, // 1011: reset
		func(c *vsock.Conn) { // 1012: last words and power off
			_, _ = c.Write(bytes.Repeat([]byte("x"), 100<<10))
			_ = c.Close()
			time.Sleep(time.Second) // until the kernel has sent them
			close(end)
		},
	}
	for i, service := range services {
		l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, uint32(1000+i), nil)
		if err != nil {
			return err
		}
		if i == 5 {
			if err := shrink(l); err != nil {
				return err
			}
		}
		go accept(l, service)
	}
	ready, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, 999, nil)
	if err != nil {
		return err
	}
	go accept(ready, echo)
	fmt.Println("guest: ready")
	<-end
	return nil
}

func accept(l *vsock.Listener, service func(*vsock.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("guest: accept:", err)
			return
		}
		go func() {
			defer c.Close()
			service(c.(*vsock.Conn))
		}()
	}
}

// shrink gives connections of l a buffer of 4 KiB. The listener has no
// SyscallConn, so it is found among the open files.
func shrink(l *vsock.Listener) error {
	want := l.Addr().(*vsock.Addr).Port
	for fd := 3; fd < 100; fd++ {
		sa, err := unix.Getsockname(fd)
		if vm, ok := sa.(*unix.SockaddrVM); err == nil && ok && vm.Port == want {
			const size, minSize = 0, 1 // SO_VM_SOCKETS_BUFFER_SIZE, _MIN_SIZE
			b := make([]byte, 8)
			binary.NativeEndian.PutUint64(b, 4096)
			if err := unix.SetsockoptString(fd, unix.AF_VSOCK, size, string(b)); err != nil {
				return err
			}
			return nil
		}
	}
	return fmt.Errorf("no socket listens on port %d", want)
}

func echo(c *vsock.Conn) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 64<<10))
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
}

func hash(c *vsock.Conn) {
	h := sha256.New()
	_, _ = io.CopyBuffer(h, struct{ io.Reader }{c}, make([]byte, 64<<10))
	_, _ = c.Write(h.Sum(nil))
}

func count(c *vsock.Conn) {
	n, buf := uint64(0), make([]byte, 256<<10)
	for {
		m, err := c.Read(buf)
		n += uint64(m)
		if err != nil {
			break
		}
	}
	_ = binary.Write(c, binary.BigEndian, n)
}

// stream is n pseudo-random bytes that depend on n only.
func stream(n uint64) io.Reader {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], n)
	return io.LimitReader(rand.NewChaCha8(seed), int64(n))
}

func number(c *vsock.Conn) (n uint64) {
	_ = binary.Read(c, binary.BigEndian, &n)
	return n
}

func random(c *vsock.Conn) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{c}, stream(number(c)), make([]byte, 64<<10))
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
}

func zeros(c *vsock.Conn) {
	buf := make([]byte, 256<<10)
	for n := number(c); n > 0; {
		m, err := c.Write(buf[:min(n, uint64(len(buf)))])
		if err != nil {
			return
		}
		n -= uint64(m)
	}
}

// connect dials the host and expects an echo.
func connect(c *vsock.Conn) {
	var ask struct{ Port, Conns, Bytes uint32 }
	if binary.Read(c, binary.BigEndian, &ask) != nil {
		return
	}
	var failures atomic.Uint32
	var wg sync.WaitGroup
	for range ask.Conns {
		wg.Go(func() {
			if err := dialEcho(ask.Port, uint64(ask.Bytes)); err != nil {
				fmt.Println("guest: dial:", err)
				failures.Add(1)
			}
		})
	}
	wg.Wait()
	_ = binary.Write(c, binary.BigEndian, failures.Load())
}

func dialEcho(port uint32, n uint64) error {
	c, err := vsock.Dial(unix.VMADDR_CID_HOST, port, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{c}, stream(n))
		_ = c.CloseWrite()
	}()
	want, got := sha256.New(), sha256.New()
	_, _ = io.Copy(want, stream(n))
	if m, err := io.Copy(got, struct{ io.Reader }{c}); err != nil || uint64(m) != n {
		return fmt.Errorf("%d of %d bytes came back: %v", m, n, err)
	}
	if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("%d bytes came back changed", n)
	}
	return nil
}

func abandon(c *vsock.Conn) { _, _ = c.Read(make([]byte, 1)) }

var held = make(chan struct{})

func hold(c *vsock.Conn) {
	<-held
	count(c)
}

func release(*vsock.Conn) {
	select {
	case <-held:
	default:
		close(held)
	}
}
