package main

import (
	"os"
	"time"

	"vminit/cmd/vminitd/netup"
)

// streamID says how stream ids travel on the stream port (docs/wire.md section 3).
type streamID string

const (
	streamIDu32    streamID = "u32"    // four bytes, big endian: spinbox's hosts
	streamIDString streamID = "string" // length and text: nerdbox's hosts
)

// rpcMode says which side opens the control connection.
type rpcMode string

const (
	rpcListen rpcMode = "listen" // the guest listens
	rpcDial   rpcMode = "dial"   // the guest connects to the host, once
)

// logFormat is how the log is written to the console.
type logFormat string

const (
	logText logFormat = "text" // key=value
	logJSON logFormat = "json" // an object a line
)

// options is what the command line and the -config file ask for.
type options struct {
	RPCPort    uint32
	StreamPort uint32
	// CID is the address to listen on; VMADDR_CID_ANY means any.
	CID        uint32
	AllowLocal bool // accept peers with CID 1 as well as the host
	StreamID   streamID
	RPC        rpcMode

	Listen        string // path of a unix socket: run outside a VM
	StreamListen  string
	EventsForward string // ttrpc unix socket that takes events

	// CgroupTree is the cgroup below which containers live.
	CgroupTree string
	// IdleExit ends a daemon outside a VM that nobody has used for so long,
	// 0 never, once it has IdleLock for itself: see ondemand.go.
	IdleExit time.Duration
	IdleLock string
	ReadyFD  int // told when the daemon serves, or why not; 0 is none

	Networks   []netup.Interface
	LogFormat  logFormat
	StopGrace  uint32 // seconds that containers have between their stop signal and SIGKILL
	Debug      bool
	OnlineCPUs bool   // that are plugged in, without being asked to
	DebugShell uint32 // vsock port of a shell for the host, 0 for none
}

func defaultOptions() options {
	return options{
		RPCPort:    1025,
		StreamPort: 1026,
		CID:        3,
		StreamID:   streamIDu32,
		RPC:        rpcListen,
		CgroupTree: cgroupTree,
		LogFormat:  logText,
		StopGrace:  5,
	}
}

// stopTimeout is how long ending all containers may take, killing included.
func (o options) stopTimeout() time.Duration {
	return time.Duration(o.StopGrace)*time.Second + 2*time.Second
}

// forwardToContainerd takes the address that containerd gives its shims in
// TTRPC_ADDRESS; an unusable one is as good as none.
func (o *options) forwardToContainerd(address string) { _ = setEventsForward(o, address) }

// outsideVM reports whether the daemon is to serve without bringing a machine
// up: it was told to listen on a unix socket, or it is not PID 1.
func (o options) outsideVM() bool { return o.Listen != "" || os.Getpid() != 1 }
