package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vminit/internal/microvm"
	"vminit/internal/sys"
)

// defaultSlots is how many containers with a disk of their own a VM that stays
// can have at once.
const defaultSlots = 4

func newVMBootCommand(g *globals) *cobra.Command {
	var o machineOptions
	var name string
	var slots int
	cmd := &cobra.Command{
		Use:   "boot [flags]",
		Short: "Boot a VM that stays",
		Long: `Boot a VM that stays until vminitctl vm stop, and print its name and the
addresses of its two ports. A process of its own supervises it in the background.`,
		Example: `  vminitctl vm boot --name v1 --memory 1G
  vminitctl run --vm v1 --rootfs ./rootfs -- echo hello
  vminitctl vm stop v1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, signals := watchSignals(cmd.Context())
			defer signals.stop()
			p := newProgress()
			defer p.done()
			c, err := o.standing(g, name, slots)
			if err != nil {
				return fmt.Errorf("vm boot: %w", err)
			}
			p.say("booting (%s: %s)", c.Accel.Name, c.Accel.Reason)
			ctx, cancel := g.deadline(ctx, bootTimeout)
			defer cancel()
			meta, err := startSupervisor(ctx, c)
			p.done()
			if err != nil {
				return fmt.Errorf("vm boot: %w", err)
			}
			return printBooted(cmd.OutOrStdout(), meta, g.json)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the VM (default: random)")
	cmd.Flags().IntVar(&slots, "slots", defaultSlots, "how many disks can be plugged in at once, one for each container with a root file system from this host")
	o.register(cmd.Flags())
	return cmd
}

// standing is the config of a machine without disks that stays.
func (o *machineOptions) standing(g *globals, name string, slots int) (microvm.Config, error) {
	if slots < 0 {
		return microvm.Config{}, sys.Invalidf("--slots %d: want 0 or more", slots)
	}
	c, err := o.config(g.debug, g.logger())
	if err != nil {
		return c, err
	}
	files, err := o.files()
	if err != nil {
		return c, err
	}
	c.Name, c.HotplugSlots, c.Kernel, c.Initrd = name, slots, files.Kernel, files.Initrd
	// The supervisor does not run where we do.
	for _, path := range []*string{&c.Kernel, &c.Initrd} {
		if *path, err = filepath.Abs(*path); err != nil {
			return c, err
		}
	}
	return c, nil
}

func printBooted(w io.Writer, m microvm.Meta, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(m)
	}
	_, err := fmt.Fprintf(w, "name     %s (vm://%s)\nrpc      %s\nstreams  %s\n", m.Name, m.Name, m.RPCAddress, m.StreamAddress)
	return err
}

// report is what a supervisor tells the process that started it, once.
type report struct {
	Error string        `json:"error,omitempty"`
	Meta  *microvm.Meta `json:"meta,omitempty"`
}

// maxReport bounds a report in bytes.
const maxReport = 1 << 20

// startSupervisor starts a process that owns the machine and outlives this one,
// and waits for its report. If ctx ends first the supervisor ends too.
func startSupervisor(ctx context.Context, c microvm.Config) (microvm.Meta, error) {
	fail := func(err error) (microvm.Meta, error) {
		return microvm.Meta{}, fmt.Errorf("start supervisor: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	config, err := json.Marshal(c)
	if err != nil {
		return fail(err)
	}
	configR, configW, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer configR.Close()
	defer configW.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer reportR.Close()
	defer reportW.Close()

	cmd := exec.Command(self, "vm", "supervise")
	cmd.Dir = "/"
	cmd.Stdin = configR
	cmd.ExtraFiles = []*os.File{reportW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	_ = configR.Close()
	_ = reportW.Close()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	_, _ = configW.Write(config) // if it fails the supervisor has ended, and says so
	_ = configW.Close()
	text, err := io.ReadAll(io.LimitReader(reportR, maxReport))
	var r report
	switch {
	case err != nil:
	case len(text) == 0:
		err = errors.New("the supervisor ended without a word")
	default:
		err = json.Unmarshal(text, &r)
	}
	if !stop() {
		_ = cmd.Wait()
		return microvm.Meta{}, withReport(context.Cause(ctx), r)
	}
	if err == nil && r.Meta != nil {
		return *r.Meta, cmd.Process.Release()
	}
	_ = cmd.Process.Signal(unix.SIGTERM)
	_ = cmd.Wait()
	if err == nil {
		err = errors.New(r.Error)
	}
	return microvm.Meta{}, err
}

// withReport adds to why a boot was ended what its supervisor says about it: that
// holds the end of the guest's console.
func withReport(cause error, r report) error {
	if r.Error == "" {
		return cause
	}
	return fmt.Errorf("%w: %s", cause, r.Error)
}
