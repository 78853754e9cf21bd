package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestParseFlags(t *testing.T) {
	with := func(change func(*options)) options {
		o := defaultOptions()
		change(&o)
		return o
	}
	tests := []struct {
		args     string
		want     options
		warnings int
	}{
		{args: "", want: defaultOptions()},
		{args: "-debug", want: with(func(o *options) { o.Debug = true })},
		{args: "--debug=false -allow-local=1", want: with(func(o *options) { o.AllowLocal = true })},
		{args: "-vsock-rpc-port 2000 --vsock-stream-port=2001 -vsock-cid 7",
			want: with(func(o *options) { o.RPCPort, o.StreamPort, o.CID = 2000, 2001, 7 })},
		{args: "-vsock-cid=-1", want: with(func(o *options) { o.CID = math.MaxUint32 })},
		{args: "-vsock-cid -1", want: with(func(o *options) { o.CID = math.MaxUint32 })},
		{args: "tsi_hijack -debug", want: with(func(o *options) { o.Debug = true })},
		{args: "-stream-id=string -rpc dial", want: with(func(o *options) { o.StreamID, o.RPC = streamIDString, rpcDial })},
		{args: "-log-format json -stop-timeout=60", want: with(func(o *options) { o.LogFormat, o.StopGrace = logJSON, 60 })},
		{args: "-log-format=xml -stop-timeout 3601 -stop-timeout=-1", want: defaultOptions(), warnings: 3},
		{args: "-dev -dump-info -online-cpus -debug-shell 1027", want: with(func(o *options) { o.OnlineCPUs, o.DebugShell = true, 1027 })},
		{args: "-listen unix:///run/a.sock -stream-listen=unix:///run/b.sock -events-forward /run/c.sock",
			want: with(func(o *options) {
				o.Listen, o.StreamListen, o.EventsForward = "/run/a.sock", "/run/b.sock", "/run/c.sock"
			})},
		{args: "-debug -debug=no", want: with(func(o *options) { o.Debug = true }), warnings: 1},
		// What follows a malformed flag still counts.
		{args: "-vsock-rpc-port -debug", want: with(func(o *options) { o.Debug = true }), warnings: 1},
		{args: "-bogus value -debug", want: with(func(o *options) { o.Debug = true }), warnings: 2},
		{args: "-debug tsi_hijack", want: with(func(o *options) { o.Debug = true }), warnings: 1},
		{args: "-vsock-rpc-port 0 -vsock-stream-port 4294967295 -vsock-cid x", want: defaultOptions(), warnings: 3},
		{args: "-listen vsock://1 -stream-listen unix://relative -rpc both -stream-id u64", want: defaultOptions(), warnings: 4},
		{args: "-network=mac=x -network addr=1.2.3.4/24 -- - -= --=x", want: defaultOptions(), warnings: 6},
		{args: "-vsock-rpc-port", want: defaultOptions(), warnings: 1},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got, warnings := parseFlags(strings.Fields(tt.args))
			require.Equal(t, tt.want, got)
			require.Len(t, warnings, tt.warnings, "%q", warnings)
		})
	}
}

func TestParseFlagsNetwork(t *testing.T) {
	o, warnings := parseFlags([]string{
		"-network=mac=02:00:00:00:00:01,addr=10.1.0.2/24,addr=fd00::2/64",
		"-network", "mac=02:00:00:00:00:02,dhcp=true",
	})
	require.Empty(t, warnings)
	require.Len(t, o.Networks, 2)
	require.Equal(t, "10.1.0.1", o.Networks[0].Gateway.String())
	require.True(t, o.Networks[1].DHCP)
}

func TestConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vminitd.json")
	write := func(s string) { require.NoError(t, os.WriteFile(file, []byte(s), 0o600)) }

	write(`{"vsock_context_id": 9, "rpc_port": 3000, "stream_port": 3001, "debug": true}`)
	o, warnings := parseFlags([]string{"-vsock-rpc-port=4000", "-config", file, "-debug=false"})
	require.Empty(t, warnings)
	require.Equal(t, uint32(9), o.CID)
	require.Equal(t, uint32(4000), o.RPCPort, "flags win")
	require.Equal(t, uint32(3001), o.StreamPort)
	require.False(t, o.Debug, "flags win")

	write(`{"rpc_port": -1, "stream_port": "7", "debug": "yes", "colour": 1, "vsock_context_id": 4}`)
	o, warnings = parseFlags([]string{"-config=" + file})
	require.Len(t, warnings, 1)
	for _, name := range []string{"rpc_port", "debug", "colour"} {
		require.Contains(t, warnings[0], name)
	}
	require.Equal(t, uint32(4), o.CID, "good fields survive bad ones")
	require.Equal(t, uint32(1025), o.RPCPort)

	for _, bad := range []string{"", "[]", "{", strings.Repeat(" ", maxConfig+1)} {
		write(bad)
		o, warnings = parseFlags([]string{"-config", file})
		require.Len(t, warnings, 1)
		require.Equal(t, defaultOptions(), o)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for _, bad := range []string{"", file + ".missing", t.TempDir(), fifo, "/dev/zero", "/dev/tty"} {
		_, warnings = parseFlags([]string{"-config=" + bad})
		require.Len(t, warnings, 1, "%s", bad)
	}
}

// Every flag is in the help text and every flag in the help text exists.
func TestUsageIsComplete(t *testing.T) {
	specs := flagSpecs()
	documented := map[string]bool{"config": true, "help": true, "version": true}
	for line := range strings.Lines(usage) {
		if name, ok := strings.CutPrefix(line, "  -"); ok {
			name = name[:strings.IndexAny(name, " =\n")]
			if !documented[name] {
				require.Contains(t, specs, name)
			}
			documented[name] = true
		}
	}
	for name := range specs {
		require.True(t, documented[name], "-%s is not in the help text", name)
	}
	require.Contains(t, inform([]string{"--help"}), "-vsock-rpc-port")
	require.Contains(t, inform([]string{"-version"}), version)
	require.Empty(t, inform([]string{"-debug"}))
	require.Empty(t, inform(nil))
}

func FuzzParseFlags(f *testing.F) {
	f.Add("-debug\x00-vsock-rpc-port\x001\x00tsi_hijack")
	f.Add("--network=mac=02:00:00:00:00:01,addr=10.0.0.2/24\x00-x\x00--\x00-\x00=")
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Contains(line, "config") {
			return // would read any file of this machine
		}
		o, warnings := parseFlags(strings.Split(line, "\x00"))
		if o.RPCPort == 0 || o.RPCPort == math.MaxUint32 || o.StreamPort == 0 || o.StreamPort == math.MaxUint32 {
			t.Errorf("unusable port in %+v", o)
		}
		if o.StreamID != streamIDu32 && o.StreamID != streamIDString || o.RPC != rpcListen && o.RPC != rpcDial {
			t.Errorf("unknown mode in %+v", o)
		}
		if o.Listen != "" && o.Listen[0] != '/' || len(o.Listen) > maxUnixPath {
			t.Errorf("unusable path in %+v", o)
		}
		if len(warnings) > maxWarnings {
			t.Errorf("%d warnings", len(warnings))
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"vsock_context_id": 9, "rpc_port": 3000, "stream_port": 1e3, "debug": true}`))
	f.Add([]byte(`{"rpc_port": null, "debug": [], "x": {}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		o := defaultOptions()
		_ = parseConfig(&o, b)
		if o.RPCPort == 0 || o.RPCPort == math.MaxUint32 || o.StreamPort == 0 || o.StreamPort == math.MaxUint32 {
			t.Errorf("unusable port in %+v", o)
		}
	})
}
