package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/power"
)

// scenarioEnv is set on the kernel command line, which the kernel hands to PID 1
// as environment.
const scenarioEnv = "VMINIT_TEST_SCENARIO"

// guestMain is PID 1 of the tests' machine. It never returns.
func guestMain(scenario string) {
	d := newDaemon(os.Args[1:])
	defer d.powerOffOnPanic()
	switch scenario {
	case "full":
		go d.checkEverything()
	case "bare":
		go d.checkBare()
	case "switch":
		d.switchRoot()
	case "root":
		go d.checkRoot()
	case "net":
		go d.checkNetwork()
	case "required":
		// Before the cure pivot_root fails, after it works.
		report("pivot_root in a bare initramfs", wantErr(pivotInChild(), unix.EINVAL))
		proc, err := boot.OpenProcfs()
		report("procfs", err)
		mounted, err := proc.Mounted()
		report("mountinfo", err)
		report("the cure", boot.MakeRootPivotable(mounted))
		report("pivot_root after the cure", pivotInChild())
		// A root without /run that cannot get one.
		report("remove /run", os.RemoveAll("/run"))
		report("read-only root", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		fmt.Println("CHECKS DONE")
	case "panic":
		fmt.Println("CHECKS DONE")
		panic("at the disco")
	case "crash":
		go d.crash()
	case "throw":
		go d.throw()
	}
	d.runGuest()
}

func report(name string, err error) {
	if err != nil {
		fmt.Printf("CHECK FAIL %s: %v\n", name, err)
		return
	}
	fmt.Printf("CHECK ok %s\n", name)
}

func wantErr(got, want error) error {
	if !errors.Is(got, want) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

// wantFile reports whether a file contains each of the words.
func wantFile(file string, words ...string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, w := range words {
		if !strings.Contains(string(b), w) {
			return fmt.Errorf("%s is %q, without %q", file, b, w)
		}
	}
	return nil
}

// checkEverything waits until the guest has settled, looks at every effect of
// booting, and asks for the end by a signal.
func (d *daemon) checkEverything() {
	<-d.completed
	for _, e := range d.timeline.Entries() {
		fmt.Println("TIMELINE", e)
		if e.Name != "serve" {
			report("step "+e.Name, e.Err)
		}
	}
	report("root of all threads", checkThreads())
	report("mounts", checkMounts())
	report("machine id", wantFile("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"))
	report("entropy", wantFile("/proc/sys/kernel/random/entropy_avail", "256"))
	report("timer slack", checkTimerSlack())
	_, err := os.Stat("/dev/fuse")
	report("/dev/fuse", err)
	report("pivot_root", pivotInChild())
	report("cgroup controllers", wantFile("/sys/fs/cgroup/cgroup.subtree_control", "cpuset", "cpu", "io", "memory", "pids"))
	report("own cgroup", wantFile("/proc/self/cgroup", "0::/init.scope\n"))
	report("memory.low", wantFile("/sys/fs/cgroup/init.scope/memory.low", "33554432"))
	report("oom score", wantFile("/proc/self/oom_score_adj", "-999"))
	report("limits", wantFile("/proc/self/limits", "Max open files            1048576              1048576"))
	report("sysctl panic", wantFile("/proc/sys/kernel/panic", "-1"))
	report("sysctl protected_symlinks", wantFile("/proc/sys/fs/protected_symlinks", "1"))
	report("sysctl modprobe", wantFile("/proc/sys/kernel/modprobe", "\n"))
	report("RCU", wantFile("/sys/kernel/rcu_expedited", "1"))
	if _, err := os.Stat("/etc/vminit/modules"); err == nil { // else all is built in
		report("modules", wantFile("/proc/modules", "vmw_vsock_virtio_transport", "overlay", "erofs", "virtio_net"))
	}
	report("hostname", wantFile("/proc/sys/kernel/hostname", "box"))
	report("resolv.conf", wantFile("/etc/resolv.conf", "nameserver 10.0.2.3\n"))
	report("features", wantFile(featuresFile, `"containerd.io/runtime-allow-mounts":"mkdir/*,format/*,erofs,ext4"`, `"containerd.io/vm-type":"microvm"`))
	report("hosts", wantFile("/etc/hosts", "localhost"))
	report("default route", wantFile("/proc/net/route", "eth0\t00000000\t0202000A"))
	report("address", checkAddress("eth0", "10.0.2.15/24"))
	report("loopback", checkLoopback())
	report("pty", checkPty())
	report("vsock", checkVsockListen())
	for _, link := range []string{"/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/ptmx"} {
		_, err := os.Lstat(link)
		report(link, err)
	}
	report("dumpable", checkDumpable())
	for _, s := range []syscall.Signal{unix.SIGHUP, unix.SIGABRT, unix.SIGQUIT, unix.SIGUSR1} {
		report("survives "+s.String(), unix.Kill(1, s))
	}
	time.Sleep(50 * time.Millisecond)
	report("data on a disk in use", useDisk())
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmRSS") {
			fmt.Print("MEMORY ", line)
		}
	}
	fmt.Println("CHECKS DONE")
	report("SIGINT", unix.Kill(1, unix.SIGINT))
}

// crash fails in a goroutine that nobody guards, with a file just written.
func (d *daemon) crash() {
	<-d.completed
	report("data on a disk in use", useDisk())
	fmt.Println("CHECKS DONE")
	var none *daemon
	none.log.Info("never") // nil dereference
}

// throw does what the Go runtime does not let anybody recover from.
func (d *daemon) throw() {
	<-d.completed
	report("data on a disk in use", useDisk())
	fmt.Println("CHECKS DONE")
	defer func() { recover() }()
	new(sync.Mutex).Unlock()
}

// checkThreads verifies that fchdir and chroot took every thread along.
func checkThreads() error {
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(tasks) < 2 {
		return fmt.Errorf("threads %v: %w", tasks, err)
	}
	var want unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID, &want); err != nil {
		return err
	}
	for _, task := range tasks {
		for _, link := range []string{"root", "cwd"} {
			var st unix.Statx_t
			if err := unix.Statx(unix.AT_FDCWD, filepath.Join(task, link), 0, unix.STATX_MNT_ID, &st); err != nil {
				return err
			}
			if st.Mnt_id != want.Mnt_id {
				return fmt.Errorf("%s/%s is on mount %d, not %d", task, link, st.Mnt_id, want.Mnt_id)
			}
		}
	}
	return nil
}

// checkMounts verifies that everything is mounted once, shared, and that the
// covered root is out of sight.
func checkMounts() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	seen := make(map[string]int)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		seen[f[4]]++
		if f[0] == f[1] || !strings.HasPrefix(f[6], "shared:") {
			errs = append(errs, fmt.Errorf("not shared or without parent: %s", line))
		}
		if f[4] == "/sys/fs/cgroup" && !strings.Contains(line, "nsdelegate,memory_recursiveprot") {
			errs = append(errs, fmt.Errorf("cgroup2 options: %s", line))
		}
	}
	for _, target := range append(boot.Mounts(), boot.Mount{Target: "/"}) {
		if seen[target.Target] != 1 {
			errs = append(errs, fmt.Errorf("%s is mounted %d times", target.Target, seen[target.Target]))
		}
	}
	return errors.Join(errs...)
}

func checkAddress(device, want string) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	addrs, err := link.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.String() == want {
			return nil
		}
	}
	return fmt.Errorf("%s has %v", device, addrs)
}

func checkLoopback() error {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		c, err := net.DialTimeout("tcp", l.Addr().String(), time.Second)
		l.Close()
		if err != nil {
			return err
		}
		c.Close()
	}
	return nil
}

func checkPty() error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/dev/pts/%d", n), &st); err != nil {
		return err
	}
	if st.Gid != 5 || st.Mode&0o777 != 0o620 {
		return fmt.Errorf("pty has group %d, mode %o", st.Gid, st.Mode)
	}
	return nil
}

func checkVsockListen() error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: 4000}); err != nil {
		return err
	}
	return unix.Listen(fd, 1)
}

func checkDumpable() error {
	v, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err == nil && v != 0 {
		err = fmt.Errorf("dumpable is %d", v)
	}
	return err
}

// useDisk mounts the disk, leaves a process in it and writes a file that only
// an orderly end brings to the disk.
func useDisk() error {
	const dir = "/run/disk"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev/vda", dir, "ext4", 0, ""); err != nil {
		return err
	}
	straggler := exec.Command("/init") // not /proc/self/exe: see boot.MakeRootPivotable
	straggler.Env = []string{childEnv + "=sleep"}
	straggler.Dir = dir
	if err := straggler.Start(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "written"), []byte("kept\n"), 0o644)
}

// checkBare checks what is left of a machine without console and without ACPI,
// on the serial line that the kernel does not use.
func (d *daemon) checkBare() {
	<-d.completed
	tty, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY, 0)
	if err != nil {
		d.end.request(power.Off, "no serial line")
		return
	}
	null, err := os.Readlink("/proc/self/fd/2")
	fmt.Fprintln(tty, "stderr is", null, err)
	for _, e := range d.timeline.Entries() {
		if e.Err != nil {
			fmt.Fprintln(tty, "CHECK FAIL", e)
		}
	}
	fmt.Fprintln(tty, "CHECKS DONE")
	d.end.request(power.Off, "done")
}
