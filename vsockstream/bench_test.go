package vsockstream

import (
	"io"
	"os"
	"testing"
)

// BenchmarkPump moves 64 KiB at a time from a writer through a pump to a reader
// that throws it away. "chosen" is what a pump does by itself; io.Copy is the
// yardstick: on Linux it splices where Go knows both ends.
func BenchmarkPump(b *testing.B) {
	for _, direction := range []string{"pipe-to-socket", "socket-to-pipe"} {
		for _, family := range []string{"unix", "vsock"} {
			for _, way := range []string{"chosen", "splice", "copy", "io.Copy"} {
				b.Run(direction+"/"+family+"/"+way, func(b *testing.B) {
					if family == "vsock" {
						requireVsock(b)
					}
					benchPump(b, direction, transport{vsock: family == "vsock"}, way)
				})
			}
		}
	}
}

func benchPump(b *testing.B, direction string, tr transport, way string) {
	near, far := tr.pair(b)
	r, w := pipe(b)
	var dst, src End
	var in io.WriteCloser
	var out io.Reader
	if direction == "pipe-to-socket" {
		dst, src, in, out = near, r, w, far
	} else {
		dst, src, in, out = w, near, closeWriter{far}, r
	}
	if way == "io.Copy" {
		go func() {
			io.Copy(dst.(io.Writer), src.(io.Reader))
			if c, ok := dst.(Conn); ok {
				c.CloseWrite()
			} else {
				dst.Close()
			}
		}()
	} else {
		startAdjusted(b, PumpConfig{Dst: dst, Src: src}, func(p *Pump) {
			if way != "chosen" {
				p.m.splicing = way == "splice"
			}
		})
	}
	chunk := pattern(64 << 10)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	done := make(chan int64)
	go func() {
		var n int64
		buf := make([]byte, 256<<10)
		for {
			k, err := out.Read(buf)
			n += int64(k)
			if err != nil {
				break
			}
		}
		done <- n
	}()
	b.ResetTimer()
	for range b.N {
		if _, err := in.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	in.Close()
	if n := <-done; n != int64(b.N)*int64(len(chunk)) {
		b.Fatalf("%d bytes arrived, want %d", n, int64(b.N)*int64(len(chunk)))
	}
}

type closeWriter struct{ Conn }

func (c closeWriter) Close() error { return c.CloseWrite() }

// BenchmarkPumpLatency bounces one byte through two pumps.
func BenchmarkPumpLatency(b *testing.B) {
	for _, family := range []string{"unix", "vsock"} {
		b.Run(family, func(b *testing.B) {
			if family == "vsock" {
				requireVsock(b)
			}
			tr := transport{vsock: family == "vsock"}
			near, far := tr.pair(b)
			near2, far2 := tr.pair(b)
			r, w := pipe(b)
			startPump(b, PumpConfig{Dst: w, Src: near})
			startPump(b, PumpConfig{Dst: near2, Src: r})
			one := make([]byte, 1)
			for b.Loop() {
				far.Write(one)
				if _, err := far2.Read(one); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdlePumps reports what a pump with nothing to do adds to the
// resident memory, its goroutine and its ends included.
func BenchmarkIdlePumps(b *testing.B) {
	const n = 200
	for b.Loop() {
		before := rss(b)
		var pumps []*Pump
		for range n {
			near, far := socketPair(b)
			r, w := pipe(b)
			defer far.Close()
			defer w.Close()
			pumps = append(pumps, startPump(b, PumpConfig{Dst: near, Src: r}))
		}
		b.ReportMetric(float64(rss(b)-before)/n, "B/pump")
		for _, p := range pumps {
			p.Close()
		}
	}
}

func rss(b *testing.B) int64 {
	buf, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip(err)
	}
	var pages, n int64
	field := 0
	for _, c := range buf {
		if c == ' ' {
			if field == 1 {
				pages = n
			}
			field, n = field+1, 0
			continue
		}
		n = n*10 + int64(c-'0')
	}
	return pages * int64(os.Getpagesize())
}
