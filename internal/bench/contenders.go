package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/cgroup2"
	"vminit/nsexec"
	"vminit/tasksvc"
)

// lineup starts what has to be started and collects the contenders.
type lineup struct {
	all  []*contender
	ends []func()
}

func (l *lineup) close() {
	for _, end := range slices.Backward(l.ends) {
		end()
	}
}

func (l *lineup) add(name, note string, run func() (time.Duration, error)) {
	l.all = append(l.all, &contender{name: name, note: note, run: run})
}

// contenders fills the line-up, which the caller closes even after an error.
func (l *lineup) contenders(b *bundles, daemon string) error {
	conn, err := l.daemon(b, "vminitd", daemon)
	if err != nil {
		return err
	}
	client := taskv3.NewTTRPCTaskClient(conn)
	svc, err := l.inProcess()
	if err != nil {
		return err
	}
	floor, err := l.cReference(b)
	if err != nil {
		return err
	}
	l.add("vminitd (ttrpc)", "", func() (time.Duration, error) { return lifecycle(client, b.plain()) })
	l.add("in process", "", func() (time.Duration, error) { return lifecycle(svc, b.plain()) })
	l.add("C reference", "the same syscalls, nothing else", floor)
	crun, err := newRuntime(b, "crun")
	if err != nil {
		return err
	}
	runc, err := newRuntime(b, "runc")
	if err != nil {
		return err
	}
	l.add("crun run", crun.note, func() (time.Duration, error) { return crun.lifecycle(b.plain()) })
	l.add("runc run", runc.note, func() (time.Duration, error) { return runc.lifecycle(b.plain()) })
	l.add("vminitd, seccomp", "containerd's default profile", func() (time.Duration, error) { return lifecycle(client, b.seccomp()) })
	l.add("crun run, seccomp", "the same", func() (time.Duration, error) { return crun.lifecycle(b.seccomp()) })
	if err := l.heaps(b); err != nil {
		return err
	}
	return l.execs(b, conn, crun)
}

// execs adds running a process in a container that lives meanwhile. None of them
// comes right behind a container of crun's or runc's: what the kernel still has to
// clear away then takes longer than an exec.
func (l *lineup) execs(b *bundles, conn *ttrpc.Client, crun *runtime) error {
	client, extras := taskv3.NewTTRPCTaskClient(conn), runtimeapi.NewTTRPCRuntimeClient(conn)
	if err := startSleeper(client, b.sleeper()); err != nil {
		return err
	}
	l.ends = append(l.ends, func() { stopSleeper(client) })
	if err := crun.startSleeper(b.sleeper()); err != nil {
		return err
	}
	l.ends = append(l.ends, crun.stopSleeper)
	l.add("vminitd exec", "Runtime.RunExec", func() (time.Duration, error) { return runExec(extras) })
	l.add("crun exec", "", crun.exec)
	l.add("vminitd exec, four calls", "Task.Exec, Start, Wait, Delete", func() (time.Duration, error) { return execTask(client) })
	return nil
}

// heaps adds the same daemon with little and with much on its heap.
func (l *lineup) heaps(b *bundles) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, mb := range []string{"10", "100"} {
		conn, err := l.daemon(b, "heap"+mb, self, "-serve-heap", mb)
		if err != nil {
			return err
		}
		client := taskv3.NewTTRPCTaskClient(conn)
		l.add("heap of "+mb+" MB", "", func() (time.Duration, error) { return lifecycle(client, b.plain()) })
	}
	return nil
}

// daemon starts a daemon and connects to it as a host does, once.
func (l *lineup) daemon(b *bundles, name, binary string, args ...string) (*ttrpc.Client, error) {
	socket := filepath.Join(b.dir, name+".sock")
	cmd := exec.Command(binary, append(args, "-listen", "unix://"+socket)...)
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l.ends = append(l.ends, func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	var conn net.Conn
	for range 500 {
		if conn, err = net.Dial("unix", socket); err == nil {
			return ttrpc.NewClient(conn), nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

// inProcess calls the service without a wire.
func (l *lineup) inProcess() (*tasksvc.Service, error) {
	svc, tree, err := newService("vminit-bench")
	if err != nil {
		return nil, err
	}
	l.ends = append(l.ends, func() { tree.Close() })
	return svc, nil
}

func newService(subtree string) (*tasksvc.Service, *cgroup2.Tree, error) {
	launcher, err := nsexec.NewLauncher()
	if err != nil {
		return nil, nil, err
	}
	tree, err := cgroup2.OpenTree("/sys/fs/cgroup", subtree)
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
	return svc, tree, err
}

// serveHeap is a daemon with a heap of that many megabytes, touched and kept.
func serveHeap(mb int, socket string) error {
	svc, _, err := newService(fmt.Sprintf("vminit-heap%d", mb))
	if err != nil {
		return err
	}
	ballast := make([][]byte, mb)
	for i := range ballast {
		ballast[i] = make([]byte, 1<<20)
		for j := 0; j < len(ballast[i]); j += 4096 {
			ballast[i][j] = 1
		}
	}
	l, err := net.Listen("unix", strings.TrimPrefix(socket, "unix://"))
	if err != nil {
		return err
	}
	server, err := tasksvc.NewServer(slog.New(slog.DiscardHandler), svc.Register)
	if err != nil {
		return err
	}
	err = server.Serve(context.Background(), l)
	goruntime.KeepAlive(ballast)
	return err
}

var serial int

func lifecycle(task taskv3.TTRPCTaskService, bundle string) (time.Duration, error) {
	id := nextID()
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

// startSleeper starts the container that execs go into.
func startSleeper(task taskv3.TTRPCTaskService, bundle string) error {
	ctx := context.Background()
	if _, err := task.Create(ctx, &taskv3.CreateTaskRequest{ID: sleeper, Bundle: bundle}); err != nil {
		return err
	}
	_, err := task.Start(ctx, &taskv3.StartRequest{ID: sleeper})
	return err
}

func stopSleeper(task taskv3.TTRPCTaskService) {
	ctx := context.Background()
	_, _ = task.Kill(ctx, &taskv3.KillRequest{ID: sleeper, Signal: 9})
	_, _ = task.Wait(ctx, &taskv3.WaitRequest{ID: sleeper})
	_, _ = task.Delete(ctx, &taskv3.DeleteRequest{ID: sleeper})
}

func execRequest() (*taskv3.ExecProcessRequest, error) {
	process, err := json.Marshal(config().Process)
	return &taskv3.ExecProcessRequest{ID: sleeper, ExecID: nextID(), Spec: &anypb.Any{Value: process}}, err
}

// runExec is one exec in one call.
func runExec(extras runtimeapi.TTRPCRuntimeService) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := execRequest()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	exit, err := extras.RunExec(ctx, r)
	if err == nil && exit.ExitStatus != 0 {
		err = fmt.Errorf("the process exited with %d", exit.ExitStatus)
	}
	return time.Since(began), err
}

// execTask is one exec in the four calls of the Task API.
func execTask(task taskv3.TTRPCTaskService) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := execRequest()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := task.Exec(ctx, r); err != nil {
		return 0, err
	}
	if _, err := task.Start(ctx, &taskv3.StartRequest{ID: sleeper, ExecID: r.ExecID}); err != nil {
		return 0, err
	}
	w, err := task.Wait(ctx, &taskv3.WaitRequest{ID: sleeper, ExecID: r.ExecID})
	if err != nil {
		return 0, err
	}
	if _, err := task.Delete(ctx, &taskv3.DeleteRequest{ID: sleeper, ExecID: r.ExecID}); err != nil {
		return 0, err
	}
	if w.ExitStatus != 0 {
		return 0, fmt.Errorf("the process exited with %d", w.ExitStatus)
	}
	return time.Since(began), nil
}

// cReference builds floor.c and lets it do one cycle per byte it is sent.
func (l *lineup) cReference(b *bundles) (func() (time.Duration, error), error) {
	binary := filepath.Join(b.dir, "floor")
	if err := compile("floor.c", binary); err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, filepath.Join(b.plain(), "rootfs"), "/sys/fs/cgroup/vminit-floor")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
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
	l.ends = append(l.ends, func() { in.Close(); cmd.Wait() })
	return run, nil
}

func compile(source, binary string, flags ...string) error {
	args := append([]string{"-O2", "-o", binary, filepath.Join("internal/bench/c", source)}, flags...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("gcc %s: %w\n%s", source, err, out)
	}
	return nil
}
