package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"vminit/vsockstream"
)

// Boot starts a machine and waits until its daemon serves. If it returns an
// error nothing is left of the machine, and the error holds the end of the
// guest's console. The end of ctx ends the boot; afterwards the machine lives
// until Shutdown, Kill, or the end of this process.
func Boot(ctx context.Context, c Config) (*VM, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	vm := &VM{cfg: c, done: make(chan struct{})}
	if err := vm.start(ctx); err != nil {
		return nil, fmt.Errorf("boot VM %s: %w", c.Name, err)
	}
	if err := vm.awaitGuest(ctx); err != nil {
		return nil, fmt.Errorf("boot VM %s: %w", c.Name, vm.abandon(err))
	}
	return vm, nil
}

// abandon ends a boot that err ended, waits until nothing is left, and returns
// the best explanation there is.
func (vm *VM) abandon(err error) error {
	select {
	case <-vm.qemu.exited:
		<-vm.done
		if vm.err != nil {
			return vm.err
		}
		err = errors.New("the guest powered off before it served")
	default:
		vm.Kill()
	}
	tail := vm.con.lastLines(20)
	if tail == "" {
		tail = " (it is empty)"
	}
	return fmt.Errorf("%w; its console ends with:%s", err, tail)
}

// start brings QEMU up. From then on vm.supervise owns everything; if start
// fails nothing is left.
func (vm *VM) start(ctx context.Context) (err error) {
	var back []func()
	defer func() {
		if err == nil {
			return
		}
		for i := len(back) - 1; i >= 0; i-- {
			back[i]()
		}
	}()
	if vm.dir, err = claim(vm.cfg.StateRoot, vm.cfg.Name); err != nil {
		return err
	}
	back = append(back, func() { _ = vm.dir.remove() })
	if vm.link, err = openLink(vm.dir.file(deviceSock), vm.cfg.Logger); err != nil {
		return err
	}
	back = append(back, func() { _ = vm.link.close() })
	if err := vm.link.answer(vm.cfg.Serve); err != nil {
		return err
	}
	w := wiring{
		arch: arches[runtime.GOARCH], qmpPath: vm.dir.file(qmpSock),
		vsockPath: vm.link.path, cid: vm.link.cid,
	}
	if vm.cfg.Machine == MachineMMIO && vm.cfg.Accel.Name == TCG {
		w.tscKHz = tscKHz()
	}
	if vm.qemu, err = startEmulator(vm.cfg, w, vm.dir.file(qemuLogFile), vm.link.vhost); err != nil {
		return err
	}
	vm.mark(MarkStart, vm.qemu.started)
	back = append(back, func() {
		vm.qemu.kill()
		<-vm.qemu.exited
		_ = vm.qemu.monitor.Close()
		_ = vm.qemu.console.Close()
	})
	if vm.con, err = newConsole(vm.qemu.console, vm.dir.file(consoleFile)); err != nil {
		return err
	}
	back = append(back, vm.con.close)
	if vm.doors, err = openDoors(vm.dir, vm.link, vm.con, vm.cfg.Logger); err != nil {
		return err
	}
	back = append(back, func() {
		vm.con.close() // or its clients would keep the doors open
		_ = vm.doors.close()
	})
	if err := vm.describe(); err != nil {
		return err
	}
	if vm.qmp, err = newQMP(ctx, vm.qemu.monitor, vm.event); err != nil {
		return vm.explainSilence(err)
	}
	vm.mark(MarkMonitor, time.Now())
	go vm.supervise()
	return nil
}

// explainSilence says why QEMU did not answer: most often it has ended and its
// stderr says why.
func (vm *VM) explainSilence(err error) error {
	select {
	case <-vm.qemu.exited:
	case <-time.After(time.Second):
		return err
	}
	if text := vm.qemu.complaint(); text != "" {
		return fmt.Errorf("QEMU ended at once:%s", text)
	}
	return err
}

// describe writes the machine down for other processes.
func (vm *VM) describe() error {
	tick, err := startTick(os.Getpid())
	if err != nil {
		return err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.meta = Meta{
		Name: vm.cfg.Name, PID: os.Getpid(), StartTick: tick, QEMUPID: vm.qemu.process.Pid, Started: vm.qemu.started,
		Accel: vm.cfg.Accel, Kernel: vm.cfg.Kernel, CPUs: vm.cfg.CPUs, MemoryMiB: vm.cfg.MemoryMiB,
		Vsock: vm.link.String(), CID: vm.link.cid, Slots: vm.cfg.HotplugSlots,
		RPCAddress: "unix://" + vm.dir.file(rpcSock), StreamAddress: "unix://" + vm.dir.file(streamSock),
		Marks: slices.Clone(vm.marks),
	}
	return vm.dir.writeMeta(vm.meta)
}

// Between two attempts to connect: long enough to cost nothing, short beside
// everything else a boot consists of.
const attemptInterval = 2 * time.Millisecond

// awaitGuest connects to the daemon as soon as it listens. It ends early if
// QEMU does.
func (vm *VM) awaitGuest(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-vm.qemu.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := vm.dialUntil(ctx)
	if err != nil {
		return fmt.Errorf("wait for the guest to serve: %w", err)
	}
	vm.mark(MarkReady, time.Now())
	if at := vm.con.firstByte(); !at.IsZero() {
		vm.mark(MarkFirstByte, at)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.ready = conn
	vm.meta.Ready, vm.meta.Marks = true, slices.Clone(vm.marks)
	return vm.dir.writeMeta(vm.meta)
}

func (vm *VM) dialUntil(ctx context.Context) (vsockstream.Conn, error) {
	tick := time.NewTicker(attemptInterval)
	defer tick.Stop()
	for {
		conn, err := vm.link.dial(ctx, RPCPort)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// supervise waits for QEMU and cleans up after it.
func (vm *VM) supervise() {
	defer close(vm.done)
	<-vm.qemu.exited
	vm.mark(MarkEnd, time.Now())
	<-vm.con.done
	vm.qmp.awaitEnd()
	vm.err = vm.verdict()
	vm.mu.Lock()
	if vm.ready != nil {
		_ = vm.ready.Close()
	}
	vm.mu.Unlock()
	if err := errors.Join(vm.doors.close(), vm.link.close(), vm.qemu.console.Close(), vm.dir.remove()); err != nil {
		vm.cfg.Logger.Warn("clean up after a VM", "name", vm.cfg.Name, "error", err)
	}
}
