package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"

	"vminit/cgroup2"
	"vminit/nsexec"
	"vminit/tasksvc"
)

// contenders starts what has to be started. The cleanup is never nil.
func contenders(b *bundles, daemon string) (all []*contender, cleanup func(), err error) {
	var ends []func()
	cleanup = func() {
		for _, end := range ends {
			end()
		}
	}
	add := func(name, note string, run func() (time.Duration, error), end func(), err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		ends = append(ends, end)
		all = append(all, &contender{name: name, note: note, run: run})
		return nil
	}
	remote, end, err := viaTTRPC(b, daemon)
	if err := add("vminitd (ttrpc)", "", remote, end, err); err != nil {
		return nil, cleanup, err
	}
	local, end, err := inProcess(b)
	if err := add("in process", "", local, end, err); err != nil {
		return nil, cleanup, err
	}
	floor, end, err := cReference(b)
	if err := add("C reference", "the same syscalls, nothing else", floor, end, err); err != nil {
		return nil, cleanup, err
	}
	for _, runtime := range []string{"crun", "runc"} {
		run, note, err := external(b, runtime)
		if err := add(runtime+" run", note, run, func() {}, err); err != nil {
			return nil, cleanup, err
		}
	}
	return all, cleanup, nil
}

// viaTTRPC drives the daemon as a host does, with one connection.
func viaTTRPC(b *bundles, daemon string) (func() (time.Duration, error), func(), error) {
	socket := filepath.Join(b.dir, "vminitd.sock")
	cmd := exec.Command(daemon, "-listen", "unix://"+socket)
	log, err := os.Create(filepath.Join(b.dir, "vminitd.log"))
	if err != nil {
		return nil, nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	end := func() { cmd.Process.Kill(); cmd.Wait() }
	var conn net.Conn
	for range 500 {
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	client := taskv3.NewTTRPCTaskClient(ttrpc.NewClient(conn))
	return func() (time.Duration, error) { return lifecycle(client, b.plain()) }, end, nil
}

// inProcess calls the service without a wire.
func inProcess(b *bundles) (func() (time.Duration, error), func(), error) {
	launcher, err := nsexec.NewLauncher()
	if err != nil {
		return nil, nil, err
	}
	tree, err := cgroup2.OpenTree("/sys/fs/cgroup", "vminit-bench")
	if err != nil {
		return nil, nil, err
	}
	settled := make(chan struct{})
	close(settled)
	log := slog.New(slog.DiscardHandler)
	svc, err := tasksvc.NewService(tasksvc.Config{
		Launcher: launcher, Cgroups: func() (*cgroup2.Tree, error) { return tree, nil }, CgroupMount: "/sys/fs/cgroup",
		Events: tasksvc.NewExchange(log), Settled: settled, Shutdown: func() {}, Logger: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return func() (time.Duration, error) { return lifecycle(svc, b.plain()) }, func() { tree.Close() }, nil
}

var serial int

func lifecycle(task taskv3.TTRPCTaskService, bundle string) (time.Duration, error) {
	serial++
	id := "bench-" + strconv.Itoa(serial)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	began := time.Now()
	if _, err := task.Create(ctx, &taskv3.CreateTaskRequest{ID: id, Bundle: bundle}); err != nil {
		return 0, err
	}
	if _, err := task.Start(ctx, &taskv3.StartRequest{ID: id}); err != nil {
		return 0, err
	}
	w, err := task.Wait(ctx, &taskv3.WaitRequest{ID: id})
	if err != nil {
		return 0, err
	}
	if _, err := task.Delete(ctx, &taskv3.DeleteRequest{ID: id}); err != nil {
		return 0, err
	}
	if w.ExitStatus != 0 {
		return 0, fmt.Errorf("the container exited with %d", w.ExitStatus)
	}
	return time.Since(began), nil
}

// cReference builds floor.c and lets it do one cycle per byte it is sent.
func cReference(b *bundles) (func() (time.Duration, error), func(), error) {
	binary := filepath.Join(b.dir, "floor")
	if err := compile("floor.c", binary); err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(binary, filepath.Join(b.plain(), "rootfs"), "/sys/fs/cgroup/vminit-floor")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	lines := bufio.NewReader(out)
	run := func() (time.Duration, error) {
		if _, err := in.Write([]byte{'x'}); err != nil {
			return 0, err
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			return 0, fmt.Errorf("no answer: %w", err)
		}
		us, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
		if err != nil {
			return 0, err
		}
		return time.Duration(us * 1e3), nil
	}
	return run, func() { in.Close(); cmd.Process.Kill(); cmd.Wait() }, nil
}

func compile(source, binary string, flags ...string) error {
	args := append([]string{"-O2", "-o", binary, filepath.Join("internal/bench/c", source)}, flags...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("gcc %s: %w\n%s", source, err, out)
	}
	return nil
}

// external runs another runtime's "run", which is the whole life cycle.
func external(b *bundles, runtime string) (func() (time.Duration, error), string, error) {
	path, err := exec.LookPath(runtime)
	if err != nil {
		return nil, "", fmt.Errorf("%w (apt-get install %s)", err, runtime)
	}
	env, note := os.Environ(), ""
	if runtime == "crun" && !hasSysResource() {
		shim := filepath.Join(b.dir, "memlock.so")
		if err := compile("memlock.c", shim, "-shared", "-fPIC", "-ldl"); err != nil {
			return nil, "", err
		}
		env, note = append(env, "LD_PRELOAD="+shim), "with RLIMIT_MEMLOCK preloaded away: no CAP_SYS_RESOURCE here"
	}
	state := filepath.Join(b.dir, runtime+"-state")
	return func() (time.Duration, error) {
		serial++
		cmd := exec.Command(path, "--root", state, "run", "--bundle", b.plain(), fmt.Sprintf("bench-%d", serial))
		cmd.Env = env
		began := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		return time.Since(began), nil
	}, note, nil
}

// hasSysResource looks for CAP_SYS_RESOURCE (24) among our capabilities.
func hasSysResource() bool {
	status, _ := os.ReadFile("/proc/self/status")
	_, after, _ := strings.Cut(string(status), "CapEff:")
	field, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	caps, _ := strconv.ParseUint(field, 16, 64)
	return caps&(1<<24) != 0
}
