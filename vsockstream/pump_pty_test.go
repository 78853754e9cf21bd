package vsockstream

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPumpTerminal: both directions share the master; hang-up is the end of
// the output, and the end of input leaves the terminal alone.
func TestPumpTerminal(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr transport) {
		master, slave := pty(t)
		nearOut, farOut := tr.pair(t)
		nearIn, farIn := tr.pair(t)
		out := startPump(t, PumpConfig{Dst: nearOut, Src: master, KeepSrc: true})
		in := startPump(t, PumpConfig{Dst: master, Src: nearIn, KeepDst: true})

		got := readAll(farOut)
		_, err := farIn.Write([]byte("typed"))
		require.NoError(t, err)
		b := make([]byte, 5)
		slave.SetReadDeadline(time.Now().Add(patience))
		_, err = io.ReadFull(slave, b)
		require.NoError(t, err)
		require.Equal(t, "typed", string(b))
		farIn.CloseWrite()
		await(t, in.Done(), "input")
		require.NoError(t, in.Err())

		want := pattern(200_000)
		_, err = slave.Write(want)
		require.NoError(t, err)
		slave.Close()
		require.Equal(t, want, await(t, got, "output"))
		await(t, out.Done(), "output pump")
		require.NoError(t, out.Err())
		require.NoError(t, out.Close())
		require.NoError(t, in.Close())
		require.NoError(t, control(master, func(int) error { return nil }), "the master is not the pumps' to close")
	})
}

// TestPumpTerminalReopens: getty's habit, and the end by Drain.
func TestPumpTerminalReopens(t *testing.T) {
	checkLeaks(t)
	master, slave := pty(t)
	near, far := socketPair(t)
	p := startPump(t, PumpConfig{Dst: near, Src: master, KeepSrc: true, Reopens: true})
	buf := make([]byte, 16)
	for i := range 3 {
		_, err := slave.Write([]byte("line"))
		require.NoError(t, err)
		far.SetReadDeadline(time.Now().Add(patience))
		n, err := io.ReadAtLeast(far, buf, 4)
		require.NoError(t, err)
		require.Equal(t, "line", string(buf[:n]), i)
		slave.Close()
		time.Sleep(10 * time.Millisecond)
		slave = openSlave(t, master)
	}
	slave.Write([]byte("bye"))
	slave.Close()
	p.Drain(time.Now().Add(patience))
	await(t, p.Done(), "drain")
	require.NoError(t, p.Err())
	require.Equal(t, "bye", string(await(t, readAll(far), "output")))
}

// TestPumpTerminalDrain: a background child keeps the terminal open.
func TestPumpTerminalDrain(t *testing.T) {
	checkLeaks(t)
	master, slave := pty(t)
	near, far := socketPair(t)
	p := startPump(t, PumpConfig{Dst: near, Src: master, KeepSrc: true})
	got := readAll(far)
	want := pattern(100_000)
	_, err := slave.Write(want)
	require.NoError(t, err)
	p.Drain(time.Now().Add(patience))
	await(t, p.Done(), "drain")
	require.NoError(t, p.Err())
	require.Equal(t, want, await(t, got, "output"))
}

// TestPumpTypingAtNobody: what is typed while no process has the terminal open
// is lost and stops nothing.
func TestPumpTypingAtNobody(t *testing.T) {
	checkLeaks(t)
	master, slave := pty(t)
	near, far := socketPair(t)
	p := startPump(t, PumpConfig{Dst: master, Src: near, KeepDst: true})
	slave.Close()
	_, err := far.Write([]byte("lost"))
	require.NoError(t, err)
	far.CloseWrite()
	await(t, p.Done(), "pump")
	require.NoError(t, p.Err())
}
