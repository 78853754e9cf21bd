// Package vmtest boots real microVMs for tests and runs containers in them
// through the same wire a host uses. A guest that does not power off in order
// fails the test that booted it.
package vmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"

	bundleapi "vminit/api/services/bundle/v1"
	guestapi "vminit/api/services/guest/v1"
	systemapi "vminit/api/services/system/v1"
	"vminit/internal/microvm"
)

// bootTimeout is generous: under TCG on a busy machine everything takes long.
const bootTimeout = 3 * time.Minute

// Guest is a microVM that runs vminitd.
type Guest struct {
	VM     *microvm.VM
	Client *ttrpc.Client
	Task   taskv3.TTRPCTaskService
	Bundle bundleapi.TTRPCBundleService
	System systemapi.TTRPCSystemService
	API    guestapi.TTRPCGuestClient

	warm *sync.Once // runs the first container
}

// Require makes sure that this is the rung for microVMs, or skips.
func Require(t testing.TB) {
	if os.Getenv("VMINIT_RUNG") == "vm" {
		return
	}
	if testing.Short() || os.Getenv("VMINIT_RUNG") != "" {
		t.Skip("boots a microVM: belongs to rung vm")
	}
}

// Boot starts a guest. The first disk is the root image (RootMounts).
func Boot(t testing.TB, edit func(*microvm.Config)) *Guest {
	Require(t)
	g, err := boot(edit)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the guest's console ends with:%s", g.VM.Console(60))
		}
		if err := g.Shutdown(); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return g
}

// Shared returns a guest that all tests of a test binary use; Main ends it.
func Shared(t testing.TB) *Guest {
	Require(t)
	g, err := shared()
	require.NoError(t, err)
	return g
}

var (
	shared  = sync.OnceValues(func() (*Guest, error) { g, err := boot(nil); running = g; return g, err })
	running *Guest
)

// Main is for a package's TestMain: it runs the tests and shuts the shared
// guest down, which must work.
func Main(m *testing.M) {
	code := m.Run()
	if running != nil {
		if code != 0 {
			fmt.Printf("the guest's console ends with:%s\n", running.VM.Console(60))
		}
		if err := running.Shutdown(); err != nil {
			fmt.Println("shut the shared guest down:", err)
			code = 1
		}
	}
	os.RemoveAll(scratch())
	os.Exit(code)
}

func boot(edit func(*microvm.Config), modules ...string) (*Guest, error) {
	a, err := artifacts()
	if err != nil {
		return nil, err
	}
	initrd, err := a.image(modules)
	if err != nil {
		return nil, err
	}
	c := microvm.Config{
		StateRoot: filepath.Join(scratch(), "vms"), Kernel: a.kernel, Initrd: initrd, CPUs: 2, MemoryMiB: 1024,
		Disks: []microvm.Disk{{Path: a.root, ReadOnly: true, Serial: "root"}},
	}
	if edit != nil {
		edit(&c)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	vm, err := microvm.Boot(ctx, c)
	if err != nil {
		return nil, err
	}
	client, err := vm.Client(ctx)
	if err != nil {
		vm.Kill()
		return nil, err
	}
	return (&Guest{VM: vm, warm: new(sync.Once)}).on(client), nil
}

// on returns the same guest over another connection.
func (g *Guest) on(client *ttrpc.Client) *Guest {
	return &Guest{
		VM: g.VM, warm: g.warm, Client: client, Task: taskv3.NewTTRPCTaskClient(client), Bundle: bundleapi.NewTTRPCBundleClient(client),
		System: systemapi.NewTTRPCSystemClient(client), API: guestapi.NewTTRPCGuestClient(client),
	}
}

// Shutdown powers the guest off through the Task API.
func (g *Guest) Shutdown() error {
	select {
	case <-g.VM.Done(): // a test has ended it
		return g.VM.Wait()
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	defer g.Client.Close()
	if _, err := g.Task.Shutdown(ctx, &taskv3.ShutdownRequest{Now: true}); err != nil {
		g.VM.Kill()
		return err
	}
	select {
	case <-g.VM.Done():
		return g.VM.Wait()
	case <-ctx.Done():
		g.VM.Kill()
		return fmt.Errorf("the guest did not power off; its console ends with:%s", g.VM.Console(30))
	}
}
