package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"

	"vminit/vsockstream"
)

// Mark is something that happened at a time.
type Mark struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// The marks of a boot.
const (
	MarkStart     = "QEMU started"
	MarkMonitor   = "QEMU answers"
	MarkFirstByte = "first console byte"
	MarkReady     = "guest serves"
	MarkEnd       = "QEMU ended"
)

// VM is a machine that this process owns. All methods may be called
// concurrently.
type VM struct {
	cfg   Config
	dir   *stateDir
	link  *link
	qemu  *emulator
	con   *console
	qmp   *QMP
	doors *doors
	ready vsockstream.Conn // the connection that found the guest serving

	mu     sync.Mutex // guards what follows
	meta   Meta
	marks  []Mark
	reason string // why the guest stopped, in QEMU's words
	killed bool   // by us, so that it is no failure

	done chan struct{} // closed when everything has been cleaned up
	err  error         // why it ended, set before done is closed
}

// Name is the machine's name.
func (vm *VM) Name() string { return vm.cfg.Name }

// Instance is how other processes see the machine.
func (vm *VM) Instance() *Instance {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return &Instance{vm.meta, vm.dir.path}
}

// Marks returns when what happened, in order.
func (vm *VM) Marks() []Mark {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return slices.Clone(vm.marks)
}

func (vm *VM) mark(name string, at time.Time) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.marks = append(vm.marks, Mark{name, at})
	slices.SortStableFunc(vm.marks, func(a, b Mark) int { return a.At.Compare(b.At) })
}

// Dial connects to a port on which the guest listens.
func (vm *VM) Dial(ctx context.Context, port uint32) (vsockstream.Conn, error) {
	return vm.link.dial(ctx, port)
}

// Client returns a new ttrpc client of the guest's daemon, which the caller
// closes. The first one takes the connection that Boot made.
func (vm *VM) Client(ctx context.Context) (*ttrpc.Client, error) {
	vm.mu.Lock()
	conn := vm.ready
	vm.ready = nil
	vm.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = vm.Dial(ctx, RPCPort); err != nil {
			return nil, err
		}
	}
	return ttrpc.NewClient(conn), nil
}

// OpenStream opens a stream of the guest's, to be named by "stream://id" in a
// request. id is a decimal number.
func (vm *VM) OpenStream(ctx context.Context, id string) (vsockstream.Conn, error) {
	conn, err := vm.Dial(ctx, StreamPort)
	if err != nil {
		return nil, err
	}
	if err := vsockstream.Open(ctx, conn, vsockstream.FramingU32, id); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Console returns the last lines of the guest's console, each on a line of its
// own with an indent; "" if it has written nothing.
func (vm *VM) Console(lines int) string { return vm.con.lastLines(lines) }

// Done is closed when the machine has ended and nothing is left of it.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// Wait waits until the machine has ended and returns why: nil if the guest
// powered off, or if Shutdown or Kill ended it.
func (vm *VM) Wait() error {
	<-vm.done
	return vm.err
}

// Kill ends the machine at once and waits until nothing is left of it.
func (vm *VM) Kill() {
	vm.mu.Lock()
	vm.killed = true
	vm.mu.Unlock()
	vm.qemu.kill()
	<-vm.done
}

// quitTimeout is how long QEMU may take to quit when it is asked to.
const quitTimeout = 2 * time.Second

// Shutdown asks the guest to power off and waits until it has, with all that
// runs in it. If the guest has not by the end of ctx QEMU is ended without it,
// which is the error returned.
func (vm *VM) Shutdown(ctx context.Context) error {
	err := vm.askForShutdown(ctx)
	if err == nil {
		select {
		case <-vm.done:
			return vm.err
		case <-ctx.Done():
			err = errors.New("it did not power off in time")
		}
	}
	select {
	case <-vm.done: // while it was being asked
		return vm.err
	default:
	}
	vm.mu.Lock()
	vm.killed = true
	vm.mu.Unlock()
	quit, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer cancel()
	_ = vm.qmp.Execute(quit, "quit", nil, nil)
	select {
	case <-vm.done:
	case <-quit.Done():
		vm.Kill()
	}
	return fmt.Errorf("shut down VM %s: %w", vm.cfg.Name, err)
}

func (vm *VM) askForShutdown(ctx context.Context) error {
	client, err := vm.Client(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = taskv3.NewTTRPCTaskClient(client).Shutdown(ctx, &taskv3.ShutdownRequest{Now: true})
	if errors.Is(err, ttrpc.ErrClosed) { // it has ended, well or not, which Wait tells
		return nil
	}
	return err
}

// event takes note of what QEMU tells.
func (vm *VM) event(e Event) {
	if e.Name != "SHUTDOWN" {
		return
	}
	var data struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.reason == "" {
		vm.reason = data.Reason
	}
}

// verdict says why QEMU ended, once it has: nil for an end that was wanted.
func (vm *VM) verdict() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch {
	case vm.killed:
		return nil
	case vm.qemu.state != nil:
		return fmt.Errorf("QEMU ended: %w%s", vm.qemu.state, vm.qemu.complaint())
	case vm.reason == "guest-reset", vm.reason == "guest-panic":
		return fmt.Errorf("the guest's kernel crashed (%s); its console ends with:%s", vm.reason, vm.con.lastLines(20))
	}
	return nil
}
