package main

import (
	"fmt"
	"strconv"
	"strings"

	"vminit/internal/sys"
)

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
