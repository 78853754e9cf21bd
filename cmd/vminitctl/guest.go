package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"

	bundleapi "vminit/api/services/bundle/v1"
	guestapi "vminit/api/services/guest/v1"
	mountapi "vminit/api/services/mount/v1"
	runtimeapi "vminit/api/services/runtime/v1"
	systemapi "vminit/api/services/system/v1"
	eventsapi "vminit/api/services/vmevents/v1"
	"vminit/internal/microvm"
	"vminit/internal/sys"
	"vminit/vsockstream"
)

// guest is a daemon to talk to: its services and its stream port.
type guest struct {
	client  *ttrpc.Client
	task    taskv3.TTRPCTaskService
	bundle  bundleapi.TTRPCBundleService
	mount   mountapi.TTRPCMountService
	system  systemapi.TTRPCSystemService
	debug   guestapi.TTRPCGuestClient
	events  eventsapi.TTRPCEventsClient
	runtime runtimeapi.TTRPCRuntimeService

	dialStream func(context.Context) (vsockstream.Conn, error)

	lock  *os.File // keeps a daemon started on demand, see ondemand.go
	local bool     // it takes our descriptors, and sees our files
}

func newGuest(client *ttrpc.Client, dialStream func(context.Context) (vsockstream.Conn, error)) *guest {
	return &guest{
		client: client,
		task:   taskv3.NewTTRPCTaskClient(client),
		bundle: bundleapi.NewTTRPCBundleClient(client),
		mount:  mountapi.NewTTRPCMountClient(client),
		system: systemapi.NewTTRPCSystemClient(client),
		debug:  guestapi.NewTTRPCGuestClient(client),
		events: eventsapi.NewTTRPCEventsClient(client),

		runtime: runtimeapi.NewTTRPCRuntimeClient(client),

		dialStream: dialStream,
	}
}

func (g *guest) Close() error {
	err := g.client.Close()
	if g.lock != nil {
		_ = g.lock.Close()
	}
	return err
}

// openStream opens a stream that "stream://id" names in a request.
func (g *guest) openStream(ctx context.Context, id uint32) (vsockstream.Conn, error) {
	conn, err := g.dialStream(ctx)
	if err != nil {
		return nil, err
	}
	if err := vsockstream.Open(ctx, conn, vsockstream.FramingU32, strconv.FormatUint(uint64(id), 10)); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// ownGuest connects to the daemon of a machine of ours.
func ownGuest(ctx context.Context, vm *microvm.VM) (*guest, error) {
	client, err := vm.Client(ctx)
	if err != nil {
		return nil, err
	}
	return newGuest(client, func(ctx context.Context) (vsockstream.Conn, error) {
		return vm.Dial(ctx, microvm.StreamPort)
	}), nil
}

// otherGuest connects to the daemon of a machine that another process owns.
func otherGuest(ctx context.Context, in *microvm.Instance) (*guest, error) {
	conn, err := in.Dial(ctx, microvm.RPCPort)
	if err != nil {
		return nil, err
	}
	return newGuest(ttrpc.NewClient(conn), func(ctx context.Context) (vsockstream.Conn, error) {
		return in.Dial(ctx, microvm.StreamPort)
	}), nil
}

// connect connects to the daemon that --address names.
func (g *globals) connect(ctx context.Context) (*guest, error) {
	if g.address == "" {
		return nil, sys.Invalidf("no daemon given: use --address vm://NAME, unix:///path or vsock://CID:PORT, or set VMINIT_ADDRESS")
	}
	if name, ok := strings.CutPrefix(g.address, "vm://"); ok {
		in, err := findVM(name)
		if err != nil {
			return nil, err
		}
		return otherGuest(ctx, in)
	}
	conn, err := vsockstream.Dial(ctx, g.address)
	if err != nil {
		return nil, err
	}
	return newGuest(ttrpc.NewClient(conn), func(ctx context.Context) (vsockstream.Conn, error) {
		addr := g.streamAddress
		if addr == "" {
			var err error
			if addr, err = deriveStreamAddress(g.address); err != nil {
				return nil, err
			}
		}
		return vsockstream.Dial(ctx, addr)
	}), nil
}

// deriveStreamAddress guesses the stream port that belongs to a control port:
// the next vsock port, or the socket called stream.sock beside rpc.sock.
func deriveStreamAddress(address string) (string, error) {
	unknown := sys.Invalidf("--stream-address is needed: %s does not tell where the stream port is", address)
	u, err := url.Parse(address)
	if err != nil {
		return "", unknown
	}
	switch u.Scheme {
	case "unix":
		dir, base := filepath.Split(u.Path)
		if stream := dir + strings.Replace(base, "rpc", "stream", 1); stream != u.Path {
			if _, err := os.Stat(stream); err == nil {
				return "unix://" + stream, nil
			}
		}
	case "vsock":
		if port, err := strconv.ParseUint(u.Port(), 10, 32); err == nil {
			return fmt.Sprintf("vsock://%s:%d", u.Hostname(), port+1), nil
		}
	}
	return "", unknown
}

// withNamespace adds the namespace that a request is about.
func withNamespace(ctx context.Context, namespace string) context.Context {
	md := ttrpc.MD{}
	md.Set("containerd-namespace-ttrpc", namespace)
	return ttrpc.WithMetadata(ctx, md)
}

// findVM finds a machine by name.
func findVM(name string) (*microvm.Instance, error) {
	root, err := microvm.StateRoot()
	if err != nil {
		return nil, err
	}
	return microvm.Find(root, name)
}
