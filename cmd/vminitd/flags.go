package main

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"vminit/cmd/vminitd/netup"
	"vminit/internal/sys"
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
	// 0 never, once it has IdleLock for itself: see local.go.
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

// flagSpec is one flag: set stores a value, isBool allows it to be left out.
type flagSpec struct {
	isBool bool
	set    func(o *options, value string) error
}

// flagSpecs returns the flags of docs/wire.md section 1. -config is not among them,
// because it is read before all others.
func flagSpecs() map[string]flagSpec {
	number := func(field func(*options) *uint32, parse func(string) (uint32, error)) flagSpec {
		return flagSpec{set: func(o *options, v string) (err error) {
			n, err := parse(v)
			if err == nil {
				*field(o) = n
			}
			return err
		}}
	}
	boolean := func(field func(*options) *bool) flagSpec {
		return flagSpec{isBool: true, set: func(o *options, v string) error {
			b, err := strconv.ParseBool(v)
			if err != nil {
				return sys.Invalidf("not a boolean")
			}
			*field(o) = b
			return nil
		}}
	}
	ignored := flagSpec{isBool: true, set: func(*options, string) error { return nil }}
	return map[string]flagSpec{
		"vsock-rpc-port":    number(func(o *options) *uint32 { return &o.RPCPort }, parsePort),
		"vsock-stream-port": number(func(o *options) *uint32 { return &o.StreamPort }, parsePort),
		"vsock-cid":         number(func(o *options) *uint32 { return &o.CID }, parseCID),
		"debug":             boolean(func(o *options) *bool { return &o.Debug }),
		"debug-shell":       number(func(o *options) *uint32 { return &o.DebugShell }, parsePort),
		"online-cpus":       boolean(func(o *options) *bool { return &o.OnlineCPUs }),
		"allow-local":       boolean(func(o *options) *bool { return &o.AllowLocal }),
		"dev":               ignored, // nerdbox
		"dump-info":         ignored, // nerdbox
		"stream-id":         {set: setStreamID},
		"rpc":               {set: setRPC},
		"network":           {set: addNetwork},
		"log-format":        {set: setLogFormat},
		"stop-timeout":      number(func(o *options) *uint32 { return &o.StopGrace }, parseGrace),
		"listen":            {set: func(o *options, v string) error { return setUnix(&o.Listen, v) }},
		"stream-listen":     {set: func(o *options, v string) error { return setUnix(&o.StreamListen, v) }},
		"events-forward":    {set: setEventsForward},
		"cgroup-tree":       {set: setCgroupTree},
		"idle-exit":         {set: setIdleExit},
		"idle-lock":         {set: setIdleLock},
		"ready-fd":          {set: setReadyFD},
	}
}

// parseFlags reads the arguments of PID 1. It never fails: a guest that refuses
// to boot over a flag helps nobody. What cannot be understood is left at its
// default, or at what the -config file says, and described in warnings.
//
// Flags have the form of Go's flag package: -name value, -name=value, one dash
// or two; a boolean takes its value only after "=".
func parseFlags(args []string) (o options, warnings []string) {
	warn := func(format string, a ...any) {
		if len(warnings) < maxWarnings {
			warnings = append(warnings, fmt.Sprintf(format, a...))
		}
	}
	specs := flagSpecs()
	given := splitArgs(args, specs, warn)

	o = defaultOptions()
	for _, g := range given {
		if g.name == "config" {
			if err := loadConfig(&o, g.value); err != nil {
				warn("-config: %v", err)
			}
		}
	}
	for _, g := range given {
		if g.name == "config" {
			continue
		}
		if err := specs[g.name].set(&o, g.value); err != nil {
			warn("-%s: %q ignored: %v", g.name, g.value, err)
		}
	}
	return o, warnings
}

// maxWarnings bounds what a mangled command line can write to the console.
const maxWarnings = 64

// assignment is a flag as it was given.
type assignment struct{ name, value string }

// splitArgs turns arguments into assignments to known flags and warns of the
// rest. A leading "tsi_hijack", which libkrun puts there, is dropped silently.
func splitArgs(args []string, specs map[string]flagSpec, warn func(string, ...any)) []assignment {
	if len(args) > 0 && args[0] == "tsi_hijack" {
		args = args[1:]
	}
	var given []assignment
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if !isFlag(arg) {
			warn("argument %q ignored: not a flag", arg)
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		spec, known := specs[name]
		if !known && name != "config" {
			warn("unknown flag %q ignored", arg)
			continue
		}
		switch {
		case hasValue:
		case spec.isBool:
			value = "true"
		case len(args) > 0 && !isFlag(args[0]):
			value, args = args[0], args[1:]
		default:
			// Taking the next flag for the value would lose that flag too.
			warn("flag %q ignored: it needs a value", arg)
			continue
		}
		given = append(given, assignment{name, value})
	}
	return given
}

// isFlag reports whether an argument looks like a flag: a dash and a letter, or
// two dashes. "-1" and "-" do not.
func isFlag(arg string) bool {
	rest, ok := strings.CutPrefix(arg, "-")
	if !ok || rest == "" {
		return false
	}
	return rest[0] == '-' || rest[0]|0x20 >= 'a' && rest[0]|0x20 <= 'z'
}

// parsePort accepts every vsock port that can be listened on. VMADDR_PORT_ANY
// cannot: the host would not know which it became.
func parsePort(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == 0 || n == math.MaxUint32 {
		return 0, sys.Invalidf("not a vsock port between 1 and %d", uint32(math.MaxUint32-1))
	}
	return uint32(n), nil
}

// parseCID accepts any context id; -1 is VMADDR_CID_ANY as C programs write it.
func parseCID(v string) (uint32, error) {
	if v == "-1" {
		return math.MaxUint32, nil
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return 0, sys.Invalidf("not a vsock context id")
	}
	return uint32(n), nil
}

func setStreamID(o *options, v string) error {
	switch s := streamID(v); s {
	case streamIDu32, streamIDString:
		o.StreamID = s
		return nil
	}
	return sys.Invalidf("want u32 or string")
}

func setLogFormat(o *options, v string) error {
	switch f := logFormat(v); f {
	case logText, logJSON:
		o.LogFormat = f
		return nil
	}
	return sys.Invalidf("want text or json")
}

// parseGrace accepts up to an hour.
func parseGrace(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n > 3600 {
		return 0, sys.Invalidf("not a number of seconds up to 3600")
	}
	return uint32(n), nil
}

func setRPC(o *options, v string) error {
	switch m := rpcMode(v); m {
	case rpcListen, rpcDial:
		o.RPC = m
		return nil
	}
	return sys.Invalidf("want listen or dial")
}

func addNetwork(o *options, v string) error {
	i, err := netup.ParseNetworkFlag(v)
	if err != nil {
		return err
	}
	o.Networks = append(o.Networks, i)
	return nil
}

// maxUnixPath is what fits into sun_path with its NUL: unix(7).
const maxUnixPath = 107

func setUnix(path *string, v string) error {
	p, ok := strings.CutPrefix(v, "unix://")
	if !ok || !strings.HasPrefix(p, "/") || len(p) > maxUnixPath || strings.ContainsRune(p, 0) {
		return sys.Invalidf("want unix:///path, the path absolute and at most %d bytes", maxUnixPath)
	}
	*path = p
	return nil
}

// setCgroupTree takes a simple name.
func setCgroupTree(o *options, v string) error {
	if v == "" || v[0] == '.' || strings.ContainsAny(v, "/\x00\n") {
		return sys.Invalidf("want a simple name")
	}
	o.CgroupTree = v
	return nil
}

func setIdleExit(o *options, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return sys.Invalidf("want a duration such as 30s")
	}
	o.IdleExit = d
	return nil
}

func setIdleLock(o *options, v string) error {
	if !strings.HasPrefix(v, "/") {
		return sys.Invalidf("want an absolute path")
	}
	o.IdleLock = v
	return nil
}

func setReadyFD(o *options, v string) error {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n < 3 {
		return sys.Invalidf("want the number of a descriptor above 2")
	}
	o.ReadyFD = int(n)
	return nil
}

// setEventsForward accepts a bare path too, as containerd writes it.
func setEventsForward(o *options, v string) error {
	if strings.HasPrefix(v, "/") {
		v = "unix://" + v
	}
	return setUnix(&o.EventsForward, v)
}

// forwardToContainerd takes the address that containerd gives its shims in
// TTRPC_ADDRESS; an unusable one is as good as none.
func (o *options) forwardToContainerd(address string) { _ = setEventsForward(o, address) }

// outsideVM reports whether the daemon is to serve without bringing a machine
// up: it was told to listen on a unix socket, or it is not PID 1.
func (o options) outsideVM() bool { return o.Listen != "" || os.Getpid() != 1 }
