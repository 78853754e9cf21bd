package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"vminit/internal/sys"
)

// Plugged are disks that were plugged into a machine while it ran.
type Plugged struct {
	in    *Instance
	qmp   *QMP // nil once released
	disks []int
}

// plugName is the name of what is in a slot: of the device, its block node and,
// as a number, its set of descriptors.
func plugName(slot int) string { return "plug" + strconv.Itoa(slot) }

// Plug plugs disk images in, read-only ones. QEMU gets the descriptors; the
// files may have been unlinked and stay the caller's.
//
// The guest names disks by the lowest free number, so the numbers that Numbers
// returns hold only while nobody else plugs. Until Release, or the end of this
// process, nobody can: QEMU's monitor talks to one client at a time.
func (in *Instance) Plug(ctx context.Context, files []*os.File) (p *Plugged, err error) {
	qmp, err := in.Monitor(ctx, nil)
	if err != nil {
		return nil, err
	}
	p = &Plugged{in: in, qmp: qmp}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Unplug(context.WithoutCancel(ctx))) // takes its time, but not for ever
			p = nil
		}
	}()
	used, err := p.used(ctx)
	if err != nil {
		return p, err
	}
	for _, f := range files {
		slot := 0
		for slices.Contains(used, slot) {
			slot++
		}
		if slot >= in.Slots {
			return p, sys.Mark(sys.ErrState, fmt.Errorf("VM %s has no free slot for a disk (it has %d; see vm boot --slots)", in.Name, in.Slots))
		}
		if err := p.plug(ctx, slot, f); err != nil {
			return p, err
		}
		used = append(used, slot)
	}
	return p, nil
}

// Monitor connects to QEMU, and waits until others have done with it. onEvent
// may be nil; see newQMP. Close it soon: nobody else can plug anything meanwhile.
func (in *Instance) Monitor(ctx context.Context, onEvent func(Event)) (*QMP, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(in.Dir, qmpSock))
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", in.Name, err)
	}
	return newQMP(ctx, conn, onEvent)
}

// used returns the slots that have a disk.
func (p *Plugged) used(ctx context.Context) (slots []int, err error) {
	var devices []struct{ Name string }
	err = p.qmp.Execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &devices)
	for _, d := range devices {
		for i := range p.in.Slots {
			if d.Name == plugName(i) {
				slots = append(slots, i)
			}
		}
	}
	return slots, err
}

func (p *Plugged) plug(ctx context.Context, slot int, f *os.File) error {
	// Sets below maxDisks are those of disks that were there from the start.
	set := maxDisks + slot
	err := p.qmp.ExecuteWithFile(ctx, "add-fd", map[string]any{"fdset-id": set}, nil, f)
	if err != nil {
		return err
	}
	name := plugName(slot)
	if err := p.qmp.Execute(ctx, "blockdev-add", newBlockNode(name, imageDriver(f.Stat()), fmt.Sprintf("/dev/fdset/%d", set), true), nil); err != nil {
		return err
	}
	p.disks = append(p.disks, slot) // from here on there is something to take back
	err = p.qmp.Execute(ctx, "device_add", map[string]string{
		"driver": "virtio-blk-pci", "id": name, "drive": name, "bus": slotName(slot),
	}, nil)
	if err != nil {
		return err
	}
	return p.awaitDriver(ctx, name)
}

// awaitDriver waits until the guest has read from the disk, which its kernel
// does on its own, looking for partitions, once the disk has a number and can be
// opened. Of two that are plugged in at once either may become the first.
func (p *Plugged) awaitDriver(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, driverTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var disks []struct {
			Qdev  string
			Stats struct {
				Reads int `json:"rd_operations"`
			}
		}
		if err := p.qmp.Execute(ctx, "query-blockstats", nil, &disks); err != nil {
			return err
		}
		for _, d := range disks {
			if d.Qdev == "/machine/peripheral/"+name+"/virtio-backend" && d.Stats.Reads > 0 {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the guest has not taken disk %s: %w (has its kernel PCI hotplug and virtio_blk?)", name, ctx.Err())
		}
	}
}

// driverTimeout bounds the wait for the guest's driver: it may be loading.
const driverTimeout = 15 * time.Second

// Numbers are the guest's numbers of the disks: 0 is /dev/vda.
func (p *Plugged) Numbers() []int { return p.disks }

// Release lets others plug, once the guest has the disks.
func (p *Plugged) Release() error {
	if p.qmp == nil {
		return nil
	}
	qmp := p.qmp
	p.qmp = nil
	return qmp.Close()
}

// unplugTimeout is how long the guest may take to let go of disks. Tests shorten
// it.
var unplugTimeout = 20 * time.Second

// Unplug takes the disks out, which the guest must not use any more, and waits
// until the guest has let go of them, but not for ever: one that does not answer
// must keep neither its caller nor, with QEMU's monitor, all others.
func (p *Plugged) Unplug(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, unplugTimeout)
	defer cancel()
	if err := p.Release(); err != nil {
		return err
	}
	if len(p.disks) == 0 {
		return nil
	}
	gone := make(chan string, 2*maxDisks)
	qmp, err := p.in.Monitor(ctx, func(e Event) {
		var data struct{ Device string }
		if e.Name == "DEVICE_DELETED" && json.Unmarshal(e.Data, &data) == nil && data.Device != "" {
			select {
			case gone <- data.Device:
			default: // more devices than there can be
			}
		}
	})
	if err != nil {
		return err
	}
	defer qmp.Close()
	var errs []error
	for _, slot := range p.disks {
		errs = append(errs, unplug(ctx, qmp, plugName(slot), gone))
	}
	p.disks = nil
	return errors.Join(errs...)
}

func unplug(ctx context.Context, qmp *QMP, name string, gone <-chan string) error {
	err := qmp.Execute(ctx, "device_del", map[string]string{"id": name}, nil)
	var refused *QMPError
	switch {
	case errors.As(err, &refused) && refused.Class == "DeviceNotFound": // it never got that far
	case err != nil:
		return err
	default:
		for device := ""; device != name; {
			select {
			case device = <-gone:
			case <-ctx.Done():
				return fmt.Errorf("the guest does not let go of disk %s: %w", name, ctx.Err())
			}
		}
	}
	return qmp.Execute(ctx, "blockdev-del", map[string]string{"node-name": name}, nil)
}
