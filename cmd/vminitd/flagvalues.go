package main

import (
	"math"
	"strconv"
	"strings"
	"time"

	"vminit/cmd/vminitd/netup"
	"vminit/internal/sys"
)

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
