// Command syscalls compares what vminitd makes a container of with what crun
// does for the same bundle, the one crun itself writes as the default: it prints
// the table of docs/syscalls.md. It needs root, crun, strace, gcc and busybox;
// make syscalls runs it in a private mount namespace, where it shows crun a
// cgroup2 alone.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/tasksvc"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "syscalls:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "vminit-syscalls-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bundle := filepath.Join(dir, "bundle")
	if err := makeBundle(bundle); err != nil {
		return err
	}
	trace, err := traceCrun(dir, bundle)
	if err != nil {
		return err
	}
	crun, err := countTrace(trace)
	if err != nil {
		return err
	}
	ownTrace, err := traceDaemon(dir, bundle)
	if err != nil {
		return err
	}
	own, err := countTrace(ownTrace)
	if err != nil {
		return err
	}
	plan, err := tasksvc.Plan(bundle)
	if err != nil {
		return err
	}
	if keep := os.Getenv("KEEP"); keep != "" { // to read what was counted
		for name, text := range map[string]string{"crun.strace": trace, "vminitd.strace": ownTrace, "plan.txt": plan} {
			if err := os.WriteFile(filepath.Join(keep, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	fmt.Print(table(crun.child, own.child, countPlan(plan), crun.parent))
	return nil
}

// makeBundle makes the default bundle, with a program that ends at once and
// without a terminal.
func makeBundle(dir string) error {
	for _, d := range []string{"bin", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			return err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs/bin/true"), busybox, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("crun", "spec")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("crun spec: %w: %s", err, out)
	}
	config := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	spec.Process.Terminal = false
	spec.Process.Args = []string{"/bin/true"}
	spec.Linux.CgroupsPath = fmt.Sprintf("/vminit-syscalls-%d", os.Getpid())
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(config, text, 0o644)
}

// traceCrun runs the bundle with crun under strace.
func traceCrun(dir, bundle string) (string, error) {
	for unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH) == nil {
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return "", fmt.Errorf("mount cgroup2: %w (run me in a private mount namespace, as root)", err)
	}
	// crun gives up where it cannot raise RLIMIT_MEMLOCK; see that file.
	shim, trace := filepath.Join(dir, "memlock.so"), filepath.Join(dir, "trace")
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", shim, "internal/bench/c/memlock.c", "-ldl").CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc: %w: %s", err, out)
	}
	cmd := exec.Command("strace", "-f", "-s", "200", "-o", trace, "-E", "LD_PRELOAD="+shim, "crun", "--root", filepath.Join(dir, "state"), "run", "syscalls")
	cmd.Dir = bundle
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("strace crun: %w: %s", err, out)
	}
	text, err := os.ReadFile(trace)
	return string(text), err
}

// traceDaemon runs the bundle with bin/vminitd under strace.
func traceDaemon(dir, bundle string) (string, error) {
	trace, socket := filepath.Join(dir, "own"), filepath.Join(dir, "rpc.sock")
	cmd := exec.Command("strace", "-f", "-s", "200", "-o", trace, "bin/vminitd", "-listen", "unix://"+socket, "-stream-listen", "unix://"+filepath.Join(dir, "stream.sock"))
	if err := cmd.Start(); err != nil {
		return "", err
	}
	err := runContainer(socket, bundle)
	if err != nil { // it has not been told to end
		_ = cmd.Process.Kill()
	}
	_ = cmd.Wait()
	if err != nil {
		return "", fmt.Errorf("vminitd: %w", err)
	}
	text, err := os.ReadFile(trace)
	return string(text), err
}

// runContainer takes a container through its life, and has the daemon end.
func runContainer(socket, bundle string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	md := ttrpc.MD{}
	md.Set("containerd-namespace-ttrpc", "default")
	ctx = ttrpc.WithMetadata(ctx, md)
	var conn net.Conn
	var err error
	for ; ; time.Sleep(20 * time.Millisecond) {
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		if ctx.Err() != nil {
			return err
		}
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	task := taskv3.NewTTRPCTaskClient(client)
	const id = "syscalls"
	if _, err := task.Create(ctx, &taskv3.CreateTaskRequest{ID: id, Bundle: bundle}); err != nil {
		return err
	}
	if _, err := task.Start(ctx, &taskv3.StartRequest{ID: id}); err != nil {
		return err
	}
	if _, err := task.Wait(ctx, &taskv3.WaitRequest{ID: id}); err != nil {
		return err
	}
	if _, err := task.Delete(ctx, &taskv3.DeleteRequest{ID: id}); err != nil {
		return err
	}
	_, err = task.Shutdown(ctx, &taskv3.ShutdownRequest{ID: id, Now: true})
	return err
}

// counts are numbers of calls by name.
type counts map[string]int

func (c counts) total() (n int) {
	for _, v := range c {
		n += v
	}
	return n
}

// countTrace counts what the process did that became the container's, from its
// birth up to its execve, and what crun did beside it.
func countTrace(text string) (c struct{ child, parent counts }, err error) {
	child := ""
	for line := range strings.Lines(text) {
		if pid, call, _ := strings.Cut(line, " "); strings.HasPrefix(strings.TrimSpace(call), `execve("/bin/true"`) {
			child = pid
		}
	}
	if child == "" {
		return c, errors.New("the trace has no execve of the container's program")
	}
	c.child, c.parent = counts{}, counts{}
	done := false
	for line := range strings.Lines(text) {
		pid, call, _ := strings.Cut(line, " ")
		call = strings.TrimSpace(call)
		name, _, ok := strings.Cut(call, "(")
		if !ok || strings.ContainsAny(name, " <+-") { // the rest of a call, a signal, an exit
			continue
		}
		switch {
		case pid != child:
			c.parent[name]++
		case !done:
			c.child[name]++
			done = strings.HasPrefix(call, `execve("/bin/true"`)
		}
	}
	return c, nil
}

// countPlan counts a plan's calls, branches included, of which only some are
// made.
func countPlan(text string) counts {
	c := counts{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, _, ok := strings.Cut(line, "(")
		switch {
		case strings.HasPrefix(line, "wait at gate"):
			c["write"]++ // tells that it is there
			c["read"]++  // waits for the answer
		case ok && name != "" && !strings.ContainsAny(name, " #*:"):
			c[name]++
		}
	}
	return c
}

func table(crun, own, plan, parent counts) string {
	var b strings.Builder
	b.WriteString("| call | crun's child | vminitd's child | vminitctl plan | crun's parent |\n| --- | ---: | ---: | ---: | ---: |\n")
	all := counts{}
	for _, c := range []counts{crun, own, plan} {
		maps.Copy(all, c)
	}
	names := slices.SortedFunc(maps.Keys(all), func(x, y string) int {
		return cmp.Or(cmp.Compare(crun[y]+own[y], crun[x]+own[x]), strings.Compare(x, y))
	})
	cell := func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprint(n)
	}
	rest := parent.total()
	for _, n := range names {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", n, cell(crun[n]), cell(own[n]), cell(plan[n]), cell(parent[n]))
		rest -= parent[n]
	}
	fmt.Fprintf(&b, "| others | | | | %d |\n", rest)
	fmt.Fprintf(&b, "| **total** | **%d** | **%d** | %d | %d |\n", crun.total(), own.total(), plan.total(), parent.total())
	return b.String()
}
