package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/power"
)

// rootEnv says what switchRoot makes the root of: erofs, overlay or virtiofs.
const rootEnv = "VMINIT_TEST_ROOT"

// switchRoot is what an initramfs of a distribution does: it loads the modules
// that the root needs, mounts it and runs its init there.
func (d *daemon) switchRoot() {
	r := &boot.Runner{Timeline: d.timeline, Log: d.log, Fatal: d.die}
	r.Required("dev", func() error { return unix.Mount("dev", "/dev", "devtmpfs", 0, "") })
	r.Required("modules", func() error {
		return errors.Join(boot.LoadModules(r, boot.ModuleList), boot.LoadModules(r, boot.ModuleListLate), boot.LoadModules(r, boot.ModuleListRest))
	})
	const root = "/sysroot"
	r.Required("directory", func() error { return os.MkdirAll(root, 0o755) })
	r.Required("root", func() error {
		switch kind := os.Getenv(rootEnv); kind {
		case "erofs":
			return unix.Mount("/dev/vda", root, "erofs", unix.MS_RDONLY, "")
		case "virtiofs":
			return unix.Mount("rootfs", root, "virtiofs", 0, "")
		case "overlay":
			if err := errors.Join(os.Mkdir("/lower", 0o755), os.Mkdir("/rw", 0o755), unix.Mount("/dev/vda", "/lower", "erofs", unix.MS_RDONLY, ""),
				unix.Mount("rw", "/rw", "tmpfs", 0, ""), os.Mkdir("/rw/upper", 0o755), os.Mkdir("/rw/work", 0o755)); err != nil {
				return err
			}
			return unix.Mount("overlay", root, "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work")
		default:
			return fmt.Errorf("unknown root %q", kind)
		}
	})
	r.Required("move", func() error {
		return errors.Join(unix.Unmount("/dev", unix.MNT_DETACH), unix.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
	})
	env := []string{scenarioEnv + "=root", rootEnv + "=" + os.Getenv(rootEnv)}
	r.Required("exec", func() error {
		return unix.Exec("/sbin/vminitd", append([]string{"/sbin/vminitd"}, os.Args[1:]...), env)
	})
}

// checkRoot looks at a guest whose root is a disk.
func (d *daemon) checkRoot() {
	<-d.completed
	defer d.end.request(power.Off, "checked")
	kind := os.Getenv(rootEnv)
	cmdline, err := os.ReadFile("/proc/cmdline")
	report("command line", err)
	malformed := bytes.Contains(cmdline, []byte("malformed"))
	for _, e := range d.timeline.Entries() {
		fmt.Println("TIMELINE", e)
		if e.Name != "serve" && !(malformed && (strings.HasPrefix(e.Name, "network") || strings.HasPrefix(e.Name, "swap ") || e.Name == "notify the host")) {
			report("step "+e.Name, e.Err)
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	report("mountinfo", err)
	root := ""
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[4] == "/" {
			root = line
		}
	}
	fmt.Println("ROOT", root)
	err = os.WriteFile("/written", nil, 0o644)
	if readOnly := kind == "erofs" || bytes.Contains(cmdline, []byte(" ro ")); readOnly {
		report("root is read-only", wantErr(err, unix.EROFS))
	} else {
		report("root can be written", err)
	}
	report("resolv.conf", wantFile("/etc/resolv.conf", "nameserver 10.0.2.3\n", "nameserver 9.9.9.9\n"))
	report("hosts", wantFile("/etc/hosts", "localhost"))
	report("machine id", wantFile("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"))
	report("hostname", wantFile("/proc/sys/kernel/hostname", "box"))
	report("/run", os.WriteFile("/run/test", nil, 0o644))
	report("/tmp", os.WriteFile("/tmp/test", nil, 0o644))
	report("pivot_root", pivotInChild())
	report("pty", checkPty())
	report("own cgroup", wantFile("/proc/self/cgroup", "0::/init.scope\n"))
	report("vsock", checkVsockListen())
	fmt.Println("CHECKS DONE")
}

// checkNetwork looks at a guest with two interfaces that were named by their MACs
// in the other order, one of them by DHCP from QEMU.
func (d *daemon) checkNetwork() {
	<-d.completed
	defer d.end.request(power.Off, "checked")
	for _, e := range d.timeline.Entries() {
		if strings.HasPrefix(e.Name, "network") {
			fmt.Println("TIMELINE", e)
			report("step "+e.Name, e.Err)
		}
	}
	links, err := net.Interfaces()
	report("interfaces", err)
	for _, l := range links {
		want := map[string]string{"02:00:00:00:00:01": "10.0.2.15/24", "02:00:00:00:00:02": "10.5.0.9/24"}[l.HardwareAddr.String()]
		if want != "" {
			report("address of "+l.HardwareAddr.String(), checkAddress(l.Name, want))
		}
		if l.HardwareAddr.String() == "02:00:00:00:00:02" {
			report("IPv6 address", checkAddress(l.Name, "fd05::9/64"))
			if l.MTU != 1400 {
				report("MTU", fmt.Errorf("it is %d", l.MTU))
			}
		}
	}
	report("three links", map[bool]error{false: fmt.Errorf("%v", links)}[len(links) == 3])
	report("resolv.conf", wantFile("/etc/resolv.conf", "nameserver 10.5.0.1\n", "nameserver 10.0.2.3\n"))
	report("hostname", wantFile("/proc/sys/kernel/hostname", "named-by-host"))
	routes, err := os.ReadFile("/proc/net/route")
	report("routes", err)
	fmt.Printf("ROUTES\n%s", routes)
	report("both default routes", wantFile("/proc/net/route", "\t00000000\t0100050A\t0003\t0\t0\t0\t", "\t00000000\t0202000A\t0003\t0\t0\t101\t"))
	report("the lease ends", leaseEnds("10.0.2.15"))
	// A packet to the server and back: QEMU answers to DNS or refuses at once.
	c, err := net.DialTimeout("tcp", "10.0.2.2:1", 10*time.Second)
	if err == nil {
		c.Close()
	} else if errors.Is(err, unix.ECONNREFUSED) {
		err = nil
	}
	report("reach the host", err)
	fmt.Println("CHECKS DONE")
}

// leaseEnds verifies that the kernel will take a leased address away by itself.
func leaseEnds(address string) error {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_INET)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWADDR {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return err
		}
		ours, valid := false, uint32(0)
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_LOCAL:
				ours = net.IP(a.Value).String() == address
			case unix.IFA_CACHEINFO:
				valid = binary.NativeEndian.Uint32(a.Value[4:])
			}
		}
		if ours && valid != 0 && valid != 0xffffffff {
			return nil
		}
		if ours {
			return fmt.Errorf("it is valid for %d s", valid)
		}
	}
	return fmt.Errorf("%s is not there", address)
}

// checkTimerSlack verifies that the runtime's monitor may be late and that main
// may not.
func checkTimerSlack() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var all []string
	for _, t := range tasks {
		b, err := os.ReadFile(filepath.Join("/proc", t.Name(), "timerslack_ns"))
		if err != nil {
			return err
		}
		all = append(all, strings.TrimSpace(string(b)))
	}
	if len(all) < 2 || all[0] != "50000" || all[1] != "1000000" {
		return fmt.Errorf("the threads' slack is %v", all)
	}
	return nil
}
