package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// monitorSocket plays QEMU's monitor for other processes: one client after the
// other. answer says what each command gets.
func monitorSocket(t *testing.T, dir string, answer func(command string) string) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(dir, qmpSock))
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, greeting)
			for s := bufio.NewScanner(c); s.Scan(); {
				var command struct {
					Execute string
					ID      uint64
				}
				if json.Unmarshal(s.Bytes(), &command) != nil {
					break
				}
				fmt.Fprintf(c, `{"id": %d, %s}`+"\n", command.ID, answer(command.Execute))
			}
			c.Close()
		}
	}()
}

// TestPlugIntoDeafGuest: a disk that could not be plugged in is taken back, but
// a guest that does not let go of it is not waited for without end.
func TestPlugIntoDeafGuest(t *testing.T) {
	defer func(d time.Duration) { unplugTimeout = d }(unplugTimeout)
	unplugTimeout = time.Second
	dir := t.TempDir()
	monitorSocket(t, dir, func(command string) string {
		switch command {
		case "qom-list", "query-blockstats":
			return `"return": []`
		}
		return `"return": {}` // device_del too: it only asks the guest
	})
	disk, err := os.Create(filepath.Join(dir, "disk"))
	require.NoError(t, err)
	defer disk.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	in := &Instance{Meta{Name: "deaf", Slots: 1}, dir}
	ended := make(chan error, 1)
	go func() {
		_, err := in.Plug(ctx, []*os.File{disk})
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it still waits for the guest")
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "the guest does not let go of disk plug0")
}
