package cgroup2

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The test binary is also the probe that runs inside the cgroups under test:
// with PROBE set it does what that says and reports on standard output.
const probeEnv = "CGROUP2_TEST_PROBE"

func TestMain(m *testing.M) {
	if mode := os.Getenv(probeEnv); mode != "" {
		probe(mode)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// probe runs one mode: it says "ready" and waits for end of input unless the
// mode says otherwise. Modes are words separated by spaces.
func probe(mode string) {
	args := strings.Fields(mode)
	if run, ok := probes[args[0]]; ok {
		run(args[1:])
		return
	}
	fmt.Printf("unknown probe %q\n", mode)
	os.Exit(2)
}

var probes = map[string]func(args []string){
	"wait":   func([]string) { ready() },
	"device": probeDevices,
	// tick prints a line every few milliseconds for as long as it runs.
	"tick": func([]string) {
		for {
			fmt.Println("tick")
			time.Sleep(5 * time.Millisecond)
		}
	},
	// fork starts N children that wait, then waits itself.
	"fork": func(args []string) {
		n, _ := strconv.Atoi(args[0])
		for range n {
			cmd := probeCmd("wait")
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				fmt.Println("fork:", err)
				os.Exit(1)
			}
			defer in.Close()
			_, _ = bufio.NewReader(out).ReadString('\n')
		}
		ready()
	},
	// bomb forks as fast as it can, children included, until it is killed.
	"bomb": func([]string) {
		fmt.Println("ready")
		for {
			cmd := probeCmd("bomb")
			cmd.Stdout = os.Stdout
			if cmd.Start() != nil {
				time.Sleep(time.Millisecond)
			}
		}
	},
	// eat takes and touches so many MB of memory.
	"eat": func(args []string) {
		n, _ := strconv.Atoi(args[0])
		fmt.Println("eating")
		mem, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			fmt.Println("eat:", err)
			os.Exit(1)
		}
		for i := 0; i < len(mem); i += 4096 {
			mem[i] = 1
		}
		ready()
	},
	// spin keeps one processor busy.
	"spin": func([]string) {
		fmt.Println("ready")
		for {
		}
	},
	// try starts N children that wait and says how many there are.
	"try": func(args []string) {
		n, _ := strconv.Atoi(args[0])
		made := 0
		for range n {
			cmd := probeCmd("wait")
			in, _ := cmd.StdinPipe()
			defer in.Close()
			if cmd.Start() == nil {
				made++
			}
		}
		fmt.Println(made)
		ready()
	},
	// huge maps so many MB of huge pages and says what came of it.
	"huge": func(args []string) {
		n, _ := strconv.Atoi(args[0])
		_, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_HUGETLB|unix.MAP_POPULATE)
		fmt.Println(err)
		ready()
	},
	// read reads so many KB from a device, past the page cache.
	"read": func(args []string) {
		n, _ := strconv.Atoi(args[1])
		fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			fmt.Println(err)
			return
		}
		buf, _ := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		begin := time.Now()
		for at := int64(0); at < int64(n)<<10; at += int64(len(buf)) {
			if _, err := unix.Pread(fd, buf, at); err != nil {
				fmt.Println(err)
				return
			}
		}
		fmt.Println(time.Since(begin).Milliseconds())
		ready()
	},
	// threads moves itself into the cgroup at args[0] and then one of its
	// threads into the threaded cgroup at args[1].
	"threads": func(args []string) {
		if err := os.WriteFile(filepath.Join(args[0], "cgroup.procs"), []byte("0"), 0); err != nil {
			fmt.Println("threads:", err)
			os.Exit(1)
		}
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- os.WriteFile(filepath.Join(args[1], "cgroup.threads"), []byte(strconv.Itoa(unix.Gettid())), 0)
			select {}
		}()
		if err := <-done; err != nil {
			fmt.Println("threads:", err)
			os.Exit(1)
		}
		ready()
	},
}

func ready() {
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func probeCmd(mode string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), probeEnv+"="+mode, "GOMAXPROCS=1")
	return cmd
}

// process is a probe running in a cgroup.
type process struct {
	*exec.Cmd
	out *bufio.Reader
}

// start runs a probe in the cgroup and waits for its first line, which must be
// want unless that is empty. It is killed when the test ends.
func start(t *testing.T, c *Cgroup, mode, want string) *process {
	t.Helper()
	cmd := probeCmd(mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.Dir().Fd())}
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := &process{cmd, bufio.NewReader(out)}
	if want != "" {
		line, err := p.out.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want+"\n", line)
	}
	return p
}

// requireRoot skips the test for other users, unless the rung of the testing
// ladder says that root is there.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatalf("VMINIT_RUNG=%s, but uid is %d", rung, os.Getuid())
	}
	t.Skip("needs root")
}

// requireController skips the test where the controller belongs to a cgroup v1
// hierarchy, unless this is the rung where it must not.
func requireController(t *testing.T, tree *Tree, name string) {
	t.Helper()
	have, err := tree.Controllers()
	require.NoError(t, err)
	if slices.Contains(have, name) {
		return
	}
	if os.Getenv("VMINIT_RUNG") == "vm" {
		t.Fatalf("VMINIT_RUNG=vm, but there is no %s controller, only %v", name, have)
	}
	t.Skipf("no %s controller here", name)
}

// mountpoint finds where the unified hierarchy is mounted.
func mountpoint(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if i := slices.Index(fields, "-"); i > 4 && fields[i+1] == "cgroup2" {
			return fields[4]
		}
	}
	t.Skip("no cgroup2 mount")
	return ""
}

// newTree opens a tree of the test's own and removes it afterwards.
func newTree(t *testing.T) *Tree {
	t.Helper()
	requireRoot(t)
	mount := mountpoint(t)
	name := fmt.Sprintf("vminit-test-%d-%s", os.Getpid(), strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))
	tree, err := OpenTree(mount, name)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, tree.Close())
		// Whatever the test left makes this fail, and the test with it.
		require.NoError(t, unix.Rmdir(filepath.Join(mount, name)), "the test left cgroups behind")
	})
	return tree
}

// newCgroup makes a cgroup and, when the test ends, kills, deletes and closes
// it.
func newCgroup(t *testing.T, tree *Tree, path string) *Cgroup {
	t.Helper()
	c, err := tree.Create(path)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.Kill())
		require.NoError(t, c.Delete(timeout(t, 20*time.Second)))
		require.NoError(t, c.Close())
	})
	return c
}

// timeout is a context that ends after d. It works in cleanups too.
func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// hostPath is where the cgroup can be found by path, for looking from outside.
func hostPath(t *testing.T, c *Cgroup) string { return filepath.Join(mountpoint(t), c.Path()) }

// countFDs returns how many descriptors this process has open.
func countFDs(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}
