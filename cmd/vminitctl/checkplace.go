package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/kcheck"
)

// checkPlace is where the containers of check run: in a guest, or beside a
// daemon on this machine.
type checkPlace struct {
	guest   *guest
	root    string         // directory that is the containers' root,
	mounts  []*types.Mount // or how the guest puts it together
	settled func()
	serial  int
}

// container is the next one to run.
func (p *checkPlace) container(spec *specs.Spec) *container {
	p.serial++
	id := fmt.Sprintf("check-%d-%d", os.Getpid(), p.serial)
	if spec.Linux.CgroupsPath != "" {
		spec.Linux.CgroupsPath = filepath.Join(filepath.Dir(spec.Linux.CgroupsPath), id)
	}
	return &container{guest: p.guest, id: id, spec: spec, rootfs: p.mounts, progress: new(progress)}
}

// create creates the container, with a bundle of this machine if its root is
// one.
func (p *checkPlace) create(ctx context.Context, c *container) (err error) {
	if p.root == "" {
		err = c.create(ctx)
		p.settled() // the guest has the disk, if it ever will
		return err
	}
	c.spec.Root = &specs.Root{Path: p.root}
	bundle := filepath.Join(filepath.Dir(p.root), c.id)
	if err := os.Mkdir(bundle, 0o711); err != nil {
		return err
	}
	config, err := json.Marshal(c.spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600); err != nil {
		return err
	}
	if c.stdio, err = openStdio(ctx, c.guest, c.stdin, c.terminal != nil); err != nil {
		return err
	}
	_, err = c.guest.task.Create(ctx, &taskv3.CreateTaskRequest{
		ID: c.id, Bundle: bundle, Terminal: c.terminal != nil, Stdin: c.stdio.stdin, Stdout: c.stdio.stdout, Stderr: c.stdio.stderr,
	})
	c.created = err == nil
	return err
}

// capture runs a container to its end. live, if not nil, runs beside it.
func (p *checkPlace) capture(ctx context.Context, c *container, live func(output io.Reader) error) (stdout string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	defer c.remove(ctx)
	if err := p.create(ctx, c); err != nil {
		return "", 0, fmt.Errorf("create: %w", describe(err))
	}
	var out, errs bytes.Buffer
	var sink io.Writer = &out
	pipe, tap := io.Pipe()
	if live != nil {
		sink = tap
	}
	c.stdio.start(sink, &errs)
	if err := c.start(ctx); err != nil {
		return "", 0, fmt.Errorf("start: %w", describe(err))
	}
	if live != nil {
		err := live(pipe)
		pipe.Close() // what comes now is thrown away
		if err != nil {
			return "", 0, err
		}
	}
	if code, err = c.wait(ctx); err != nil {
		return "", 0, fmt.Errorf("wait: %w", describe(err))
	}
	if errs.Len() > 0 {
		return out.String(), code, fmt.Errorf("exit status %d: %s", code, strings.TrimSpace(errs.String()))
	}
	return out.String(), code, nil
}

// checkByContainer finds or makes the place, and runs what was asked for.
func (o *checkOptions) checkByContainer(ctx context.Context, g *globals) (r checkReport, err error) {
	dir, err := os.MkdirTemp("", "vminit-check-root-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil { // users of containers come through here
		return r, err
	}
	root := filepath.Join(dir, "root")
	if err := o.fillRoot(root); err != nil {
		return r, fmt.Errorf("root file system for probes: %w", err)
	}
	ctx = withNamespace(ctx, g.namespace)
	progress := newProgress()
	defer progress.done()
	vm := o.vm
	if name, ok := strings.CutPrefix(g.address, "vm://"); ok && vm == "" {
		vm = name
	}
	if vm == "" {
		guest, err := g.connect(ctx)
		if err != nil {
			return r, err
		}
		defer guest.Close()
		return o.fill(ctx, g, &checkPlace{guest: guest, root: root}, kcheck.Site{}, progress)
	}
	w := o.workplace(g, vm, root, progress)
	defer w.close()
	if err := w.open(ctx); err != nil {
		return r, err
	}
	p := &checkPlace{guest: w.guest, mounts: w.container.rootfs, settled: w.settled}
	r, err = o.fill(ctx, g, p, kcheck.Site{Erofs: p.mounts[0].Source}, progress)
	if e := w.leave(ctx); err == nil {
		err = e
	}
	return r, err
}

// workplace is a VM with the root file system on a disk.
func (o *checkOptions) workplace(g *globals, vm, root string, progress *progress) *workplace {
	if vm == newVM {
		vm = ""
	}
	c := &container{id: "check", spec: defaultSpec(g.namespace, "check"), timeline: new(timeline), progress: progress}
	c.spec.Process.Args = []string{"/vminitctl"} // open wants a command
	options := &runOptions{machineOptions: o.machineOptions, vm: vm}
	return &workplace{options: options, globals: g, container: c, rootfs: root, began: time.Now()}
}

// fillRoot makes a root file system of this program.
func (o *checkOptions) fillRoot(root string) error {
	for _, d := range []string{"", "proc", "sys", "dev", "run", "target"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(root, "tmp"), 0o700); err != nil {
		return err
	}
	if err := os.Symlink("/target", filepath.Join(root, "link")); err != nil {
		return err
	}
	binary := o.binary
	if binary == "" {
		var err error
		if binary, err = os.Executable(); err != nil {
			return err
		}
	}
	from, err := os.Open(binary)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(root, "vminitctl"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return err
	}
	return to.Close()
}

// fill probes the kernel below the place's daemon, from a container that may do
// anything there, and then has the exercises made if that was asked for.
func (o *checkOptions) fill(ctx context.Context, g *globals, p *checkPlace, at kcheck.Site, progress *progress) (r checkReport, err error) {
	if p.root != "" { // a daemon on this machine has this machine's kernel
		r, err = checkHere()
	} else {
		progress.say("probing the guest's kernel")
		var out string
		if out, _, err = p.capture(ctx, p.container(privilegedSpec(g.namespace)), nil); err == nil {
			err = json.Unmarshal([]byte(out), &r)
		}
	}
	if err != nil {
		return r, fmt.Errorf("probe: %w", err)
	}
	if o.conformance {
		r.Conformance = (&conformer{place: p, at: at, namespace: g.namespace, features: r.Features, progress: progress}).run(ctx)
	}
	return r, nil
}

// allCapabilities are those of capabilities(7).
const allCapabilities = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
	"NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE " +
	"SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL " +
	"SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// privilegedSpec is check as a container with all capabilities that shares
// everything with the guest but its mounts.
func privilegedSpec(namespace string) *specs.Spec {
	s := defaultSpec(namespace, "check")
	var caps []string
	for c := range strings.FieldsSeq(allCapabilities) {
		caps = append(caps, "CAP_"+c)
	}
	s.Hostname = ""
	s.Process.Args = []string{"/vminitctl", "check", "--json"}
	s.Process.NoNewPrivileges = false
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind"}},
		{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind"}},
		{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind"}},
	}
	s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	return s
}
