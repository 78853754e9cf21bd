package main

import (
	"context"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/microvm"
)

// workplace is where run puts its container: a VM of its own, or a place in one
// that runs already. It owns what the container is made of.
type workplace struct {
	options   *runOptions
	globals   *globals
	container *container
	rootfs    string

	root   *image
	shares []*share
	guest  *guest

	began time.Time

	vm      *microvm.VM      // ours, or
	plugged *microvm.Plugged // disks in somebody else's
}

// open brings everything up that the container needs.
func (w *workplace) open(ctx context.Context) error {
	if w.options.vm != "" {
		return w.openShared(ctx)
	}
	c := w.container
	config, err := w.options.machineOptions.config(w.globals.debug, w.globals.logger())
	if err != nil {
		return err
	}
	if err := w.openRoot(ctx); err != nil {
		return err
	}
	files, err := w.guestFiles()
	if err != nil {
		return err
	}
	config.Kernel, config.Initrd = files.Kernel, files.Initrd
	if err := w.openShares(ctx, why9pIsMissing(files.Release)); err != nil {
		return err
	}
	var numbers []int
	for i, f := range w.disks() {
		config.Disks = append(config.Disks, microvm.Disk{File: f, ReadOnly: true})
		numbers = append(numbers, i)
	}
	for _, sh := range w.shares {
		if sh.image == nil {
			config.Shares = append(config.Shares, microvm.Share{Dir: sh.source, Tag: sh.tag, ReadOnly: sh.readOnly})
		}
	}
	c.progress.say("booting (%s: %s)", config.Accel.Name, config.Accel.Reason)
	if err := w.boot(ctx, config); err != nil {
		return err
	}
	return w.furnish(numbers)
}

// openShared makes room in a VM that runs already.
func (w *workplace) openShared(ctx context.Context) error {
	ctx, cancel := w.globals.deadline(ctx, bootTimeout)
	defer cancel()
	in, err := findVM(w.options.vm)
	if err != nil {
		return err
	}
	if err := w.openRoot(ctx); err != nil {
		return err
	}
	if err := w.openShares(ctx, "the VM has booted already, without it"); err != nil {
		return err
	}
	if w.guest, err = otherGuest(ctx, in); err != nil {
		return err
	}
	w.container.guest = w.guest
	defer w.container.timeline.begin("plug disks in")()
	if w.plugged, err = in.Plug(ctx, w.disks()); err != nil {
		return err
	}
	return w.furnish(w.plugged.Numbers())
}

// openRoot makes an image of the root file system, and completes the process
// with what can be looked up in it.
func (w *workplace) openRoot(ctx context.Context) (err error) {
	c := w.container
	defer c.timeline.begin("root file system image")()
	if w.root, err = openImage(ctx, w.rootfs, c.progress); err != nil {
		return err
	}
	var users *userFiles
	if w.options.process.user != "" && w.root.dir != "" {
		users = readUserFiles(w.root.dir)
	}
	return w.options.process.apply(c.spec.Process, users)
}

// openShares makes images of what is shared, unless 9p can carry it.
func (w *workplace) openShares(ctx context.Context, no9p string) (err error) {
	if len(w.options.mounts) == 0 {
		return nil
	}
	c := w.container
	defer c.timeline.begin("images of shares")()
	w.shares, err = prepareShares(ctx, w.options.mounts, no9p, c.progress)
	return err
}

// guestFiles is a guest with no more modules than this container needs.
func (w *workplace) guestFiles() (guestFiles, error) {
	c := w.container
	c.progress.say("preparing the guest")
	defer c.timeline.begin("guest image")()
	o := w.options.guestOptions
	o.needs = []string{"virtio_blk", fileSystemModule(w.root.fsType), "overlay"}
	if len(w.options.mounts) > 0 {
		o.needs = append(o.needs, "erofs", "9p?", "9pnet_virtio?")
	}
	return o.files()
}

// disks are the images for the guest, that of the root file system first.
func (w *workplace) disks() []*os.File {
	files := []*os.File{w.root.file}
	for _, sh := range w.shares {
		if sh.image != nil {
			files = append(files, sh.image.file)
		}
	}
	return files
}

func (w *workplace) boot(ctx context.Context, config microvm.Config) (err error) {
	ctx, cancel := w.globals.deadline(ctx, bootTimeout)
	defer cancel()
	if w.vm, err = microvm.Boot(ctx, config); err != nil {
		return err
	}
	w.guest, err = ownGuest(ctx, w.vm)
	w.container.guest = w.guest
	return err
}

// furnish says how the container's file systems are put together. numbers are
// the guest's, in the order of disks.
func (w *workplace) furnish(numbers []int) error {
	var devices []string
	for _, n := range numbers {
		devices = append(devices, diskDevice(n))
	}
	c := w.container
	mounts, binds, err := assemble(c.id, w.root, w.shares, devices)
	c.rootfs, c.spec.Mounts = mounts, append(c.spec.Mounts, binds...)
	return err
}

// settled is called once the container has been created: the guest has the
// disks.
func (w *workplace) settled() {
	if w.plugged != nil {
		_ = w.plugged.Release()
	}
}

// leave ends what the container was given, in order, and completes the
// timeline.
func (w *workplace) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	tl := w.container.timeline
	if w.options.timeline {
		w.askTimeline(ctx)
	}
	if w.vm == nil {
		return w.vacate(ctx)
	}
	end := tl.begin("power off")
	_ = w.guest.Close()
	err := w.vm.Shutdown(ctx)
	end()
	tl.machine(w.vm.Marks())
	w.vm = nil
	return err
}

// vacate takes what is ours out of somebody else's VM.
func (w *workplace) vacate(ctx context.Context) error {
	if w.plugged == nil {
		return nil
	}
	defer w.container.timeline.begin("unplug disks")()
	err := w.plugged.Unplug(ctx)
	w.plugged = nil
	return err
}

// askTimeline fetches what the guest has measured; one that cannot tell is left
// out.
func (w *workplace) askTimeline(ctx context.Context) {
	asked := time.Now()
	r, err := w.guest.debug.Timeline(ctx, &emptypb.Empty{})
	if err == nil {
		w.container.timeline.guest(r, asked, time.Now(), w.began)
	} else if status.Code(err) != codes.Unimplemented {
		w.globals.logger().Debug("no timeline of the guest", "error", err)
	}
}

// close gives everything up that leave has not, wherever open failed.
func (w *workplace) close() {
	if w.vm == nil && w.guest != nil {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		_ = w.vacate(ctx)
		cancel()
	}
	if w.guest != nil {
		_ = w.guest.Close()
	}
	if w.vm != nil {
		w.vm.Kill()
	}
	closeShares(w.shares)
	if w.root != nil {
		_ = w.root.Close()
	}
}
