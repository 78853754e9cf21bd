package vsockstream

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// The schemes of an address.
const (
	schemeVsock  = "vsock"
	schemeUnix   = "unix"
	schemeVMUnix = "vm+unix" // a microVM's vsock behind a unix socket, Firecracker's convention
)

// maxUnixPath is the longest path sun_path holds with its final NUL, unix(7).
const maxUnixPath = 107

// anyCID is the wildcard context id, vsock(7).
const anyCID = uint32(unix.VMADDR_CID_ANY)

// address is a parsed address of one of the three schemes. cid and port belong
// to vsock, path to unix; vm+unix has a path and a port.
type address struct {
	scheme string
	cid    uint32
	port   uint32
	path   string
}

func (a address) String() string {
	switch a.scheme {
	case schemeVsock:
		if a.cid == anyCID {
			return fmt.Sprintf("vsock://any:%d", a.port)
		}
		return fmt.Sprintf("vsock://%d:%d", a.cid, a.port)
	case schemeVMUnix:
		return fmt.Sprintf("vm+unix://%s?port=%d", a.path, a.port)
	}
	return a.scheme + "://" + a.path
}

// parseAddress reads "vsock://CID:PORT", "unix:///path" or
// "vm+unix:///path?port=N". Paths are taken literally: no percent-decoding.
func parseAddress(s string) (address, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return address{}, badAddress(s, "it has no scheme")
	}
	a := address{scheme: scheme}
	var err error
	switch scheme {
	case schemeVsock:
		a.cid, a.port, err = parseCIDPort(s, rest)
	case schemeUnix:
		a.path, err = parsePath(s, rest)
	case schemeVMUnix:
		path, query, _ := strings.Cut(rest, "?")
		if a.path, err = parsePath(s, path); err == nil {
			a.port, err = parsePortQuery(s, query)
		}
	default:
		err = badAddress(s, fmt.Sprintf("scheme %q is unknown", scheme))
	}
	if err != nil {
		return address{}, err
	}
	return a, nil
}

func parseCIDPort(s, rest string) (cid, port uint32, err error) {
	host, portText, ok := strings.Cut(rest, ":")
	if !ok {
		return 0, 0, badAddress(s, "it has no port")
	}
	cid = anyCID
	if host != "" && host != "any" {
		n, err := strconv.ParseUint(host, 10, 32)
		if err != nil {
			return 0, 0, badAddress(s, fmt.Sprintf("context id %q is no 32-bit number and not \"any\"", host))
		}
		cid = uint32(n)
	}
	n, err := strconv.ParseUint(portText, 10, 32)
	if err != nil {
		return 0, 0, badAddress(s, fmt.Sprintf("port %q is no 32-bit number", portText))
	}
	return cid, uint32(n), nil
}

func parsePath(s, path string) (string, error) {
	switch {
	case !strings.HasPrefix(path, "/"):
		return "", badAddress(s, "its path is not absolute")
	case strings.IndexByte(path, 0) >= 0:
		return "", badAddress(s, "its path has a NUL byte")
	case len(path) > maxUnixPath:
		return "", badAddress(s, fmt.Sprintf("its path has %d bytes, a unix socket's at most %d", len(path), maxUnixPath))
	}
	return path, nil
}

func parsePortQuery(s, query string) (uint32, error) {
	values, err := url.ParseQuery(query)
	if err != nil || len(values) != 1 || len(values["port"]) != 1 {
		return 0, badAddress(s, "it needs exactly one query parameter, port")
	}
	n, err := strconv.ParseUint(values.Get("port"), 10, 32)
	if err != nil || n == 0 {
		return 0, badAddress(s, fmt.Sprintf("port %q is no 32-bit number above 0", values.Get("port")))
	}
	return uint32(n), nil
}

func badAddress(s, why string) error {
	return sys.Invalidf("address %q: %s (want vsock://CID:PORT, unix:///path or vm+unix:///path?port=N)", s, why)
}
