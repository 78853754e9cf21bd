package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxConfig bounds the -config file: four short fields are defined.
const maxConfig = 64 << 10

// loadConfig reads the -config file into o.
func loadConfig(o *options, path string) error {
	// Whatever the flag names, opening and reading it must not block.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return sys.Invalidf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxConfig {
		return fmt.Errorf("%s is larger than %d bytes", path, maxConfig)
	}
	if err := parseConfig(o, b); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// parseConfig sets the fields of o that the JSON object names and leaves the
// others. A field that is wrong is reported and left at its value; unknown
// fields are reported too, for they are most likely misspelt.
func parseConfig(o *options, b []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		var err error
		switch raw := fields[name]; name {
		case "vsock_context_id":
			err = setNumber(&o.CID, raw, parseCID)
		case "rpc_port":
			err = setNumber(&o.RPCPort, raw, parsePort)
		case "stream_port":
			err = setNumber(&o.StreamPort, raw, parsePort)
		case "debug":
			debug := o.Debug
			if err = json.Unmarshal(raw, &debug); err == nil {
				o.Debug = debug
			}
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func setNumber(field *uint32, raw json.RawMessage, parse func(string) (uint32, error)) error {
	var n json.Number
	if err := json.Unmarshal(raw, &n); err != nil {
		return err
	}
	v, err := parse(n.String())
	if err == nil {
		*field = v
	}
	return err
}
