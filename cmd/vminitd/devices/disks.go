// Package devices keeps /dev in step with the machine: the kernel makes the
// nodes, this package the links by which a host finds its disks whatever
// numbers they got. It owns what is in /dev/disk.
package devices

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vminit/internal/sys"
)

// Disks makes links to virtio disks and their partitions, as udev names them:
//
//	/dev/disk/by-id/virtio-SERIAL[-partN]
//	/dev/disk/by-path/pci-ADDRESS[-partN]
//
// Of two disks with the same serial the first by name has the link. One
// goroutine at a time may use it.
type Disks struct {
	// Sysfs and Dev are where these are mounted: /sys and /dev but for tests.
	Sysfs, Dev string
	// Log is told of links that could not be made.
	Log *slog.Logger
	// NewGeneration, if not nil, is called when the machine goes on as a copy of
	// itself (VMGenID, Linux 6.10: a uevent with NEW_VMGENID=1).
	NewGeneration func()
	// OnlineCPUs has processors that are plugged in go online at once. Without
	// it they wait for the host's OnlineCPU.
	OnlineCPUs bool

	events *sys.Uevents
	links  map[string]string // link, relative to Dev/disk, to the device's name
}

// Start subscribes to the kernel's events and makes the links to what is there
// already. Call Run then.
func (d *Disks) Start() (err error) {
	if d.events, err = sys.ListenUevents(sys.UeventKernel); err != nil {
		return err
	}
	_, err = d.scan()
	return err
}

// Run keeps the links up to date for as long as the process lives. Events that
// come close upon each other, and those that were lost, are one look at all disks.
func (d *Disks) Run() error {
	for {
		e, err := d.events.Next()
		if err != nil && !errors.Is(err, sys.ErrEventsLost) {
			return fmt.Errorf("disk links: %w", err)
		}
		look := err != nil || d.concerns(e)
		for more := look; more; {
			_, more = d.events.Pending()
		}
		if !look {
			continue
		}
		changed, err := d.scan()
		if changed {
			err = errors.Join(err, sys.AnnounceLinks())
		}
		if err != nil {
			d.Log.Error("disk links", "err", err)
		}
	}
}

// concerns reports whether an event may change the links. Loop devices and
// their like come and go with containers and have none.
func (d *Disks) concerns(e sys.Uevent) bool {
	if e.Get("NEW_VMGENID") != "" && d.NewGeneration != nil {
		d.NewGeneration()
	}
	if d.OnlineCPUs && e.Get("SUBSYSTEM") == "cpu" && e.Get("ACTION") == "add" {
		if err := onlineCPU(d.Sysfs, e.Get("DEVPATH")); err != nil {
			d.Log.Error("processor", "err", err)
		}
	}
	return e.Get("SUBSYSTEM") == "block" && !strings.HasPrefix(e.Get("DEVPATH"), "/devices/virtual/")
}

// scan looks at all disks and makes the links what they should be. What it
// cannot do is tried again next time.
func (d *Disks) scan() (changed bool, err error) {
	class := filepath.Join(d.Sysfs, "class/block")
	entries, err := os.ReadDir(class) // sorted
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("list disks: %w", err)
	}
	want := map[string]string{}
	for _, e := range entries {
		path, err := filepath.EvalSymlinks(filepath.Join(class, e.Name()))
		if err != nil {
			continue // it has just gone
		}
		serial, part := "", ""
		disk := path
		if b, err := os.ReadFile(filepath.Join(path, "partition")); err == nil {
			part = strings.TrimSpace(string(b))
			disk = filepath.Dir(path)
		}
		if strings.Contains(path, "/virtio") {
			b, _ := os.ReadFile(filepath.Join(disk, "serial")) // without it there is no link
			serial = string(b)
		}
		for _, link := range linksOf(path, serial, part) {
			if _, taken := want[link]; !taken {
				want[link] = e.Name()
			}
		}
	}
	var errs []error
	for link := range d.links {
		if _, ok := want[link]; !ok {
			errs = append(errs, os.Remove(filepath.Join(d.Dev, "disk", link)))
			changed = true
		}
	}
	for _, link := range slices.Sorted(maps.Keys(want)) {
		if d.links[link] == want[link] {
			continue
		}
		changed = true
		if err := d.link(link, want[link]); err != nil {
			errs = append(errs, err)
			delete(want, link)
		}
	}
	d.links = want
	return changed, errors.Join(errs...)
}

// link makes or changes one link; nobody ever sees none where there was one.
func (d *Disks) link(link, device string) error {
	path := filepath.Join(d.Dev, "disk", link)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	fresh := path + ".new"
	_ = os.Remove(fresh) // of one that was interrupted
	if err := os.Symlink("../../"+device, fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		_ = os.Remove(fresh)
		return err
	}
	return nil
}

// linksOf names the links that a device should have. path is its directory in
// sysfs, part the partition's number, "" for a whole disk.
func linksOf(path, serial, part string) (links []string) {
	if part != "" {
		part = "-part" + part
	}
	if s := linkName(serial); s != "" {
		links = append(links, "by-id/virtio-"+s+part)
	}
	// .../0000:00:05.0/virtio1/block/vda
	before, _, isDisk := strings.Cut(path, "/block/")
	if bus, virtio := filepath.Split(before); isDisk && strings.HasPrefix(virtio, "virtio") {
		if address := filepath.Base(bus); isPCI(address) {
			links = append(links, "by-path/pci-"+address+part)
		}
	}
	return links
}

// isPCI tells an address like 0000:00:05.0.
func isPCI(s string) bool {
	for i, form := range "hhhh:hh:hh.h" {
		if len(s) != 12 || form != 'h' && s[i] != byte(form) || form == 'h' && !strings.ContainsRune("0123456789abcdef", rune(s[i])) {
			return false
		}
	}
	return true
}

// linkName makes a serial, which is whatever 20 bytes the host likes, fit for a
// name as udev does: no blanks around it, "_" for blanks within it and for what
// is neither a letter, a digit nor one of #+-.:=@_.
func linkName(serial string) string {
	serial, _, _ = strings.Cut(serial, "\x00")
	s := []byte(strings.Join(strings.Fields(serial), "_"))
	for i, c := range s {
		if !(c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("#+-.:=@_", c) >= 0) {
			s[i] = '_'
		}
	}
	return string(s)
}
