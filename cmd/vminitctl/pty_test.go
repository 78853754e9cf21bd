package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// openPTY returns both ends of a new terminal, pty(7).
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	return master, slave
}

// transcript is what has come out of a terminal.
type transcript struct {
	t    *testing.T
	mu   sync.Mutex // guards said
	said strings.Builder
}

func newTranscript(t *testing.T, f *os.File) *transcript {
	tr := &transcript{t: t}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			tr.mu.Lock()
			tr.said.Write(buf[:n])
			tr.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return tr
}

func (tr *transcript) text() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.said.String()
}

// await waits until text has come.
func (tr *transcript) await(text string) {
	tr.t.Helper()
	require.Eventually(tr.t, func() bool { return strings.Contains(tr.text(), text) }, time.Minute, 20*time.Millisecond, "%s: %q", text, tr.text())
}
