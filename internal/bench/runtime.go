package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// runtime is another OCI runtime, measured as a process of its own per call.
type runtime struct {
	path, state, note string
	env               []string
}

func newRuntime(b *bundles, name string) (*runtime, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%w (apt-get install %s)", err, name)
	}
	r := &runtime{path: path, state: filepath.Join(b.dir, name+"-state"), env: os.Environ()}
	if name == "crun" && !hasSysResource() {
		shim := filepath.Join(b.dir, "memlock.so")
		if err := compile("memlock.c", shim, "-shared", "-fPIC", "-ldl"); err != nil {
			return nil, err
		}
		r.env, r.note = append(r.env, "LD_PRELOAD="+shim), "with RLIMIT_MEMLOCK preloaded away: no CAP_SYS_RESOURCE here"
	}
	return r, nil
}

// call runs the runtime and returns how long that took.
func (r *runtime) call(args ...string) (time.Duration, error) {
	cmd := exec.Command(r.path, append([]string{"--root", r.state}, args...)...)
	cmd.Env = r.env
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", filepath.Base(r.path), args[0], err, out)
	}
	return time.Since(began), nil
}

func (r *runtime) lifecycle(bundle string) (time.Duration, error) {
	return r.call("run", "--bundle", bundle, nextID())
}

const sleeper = "bench-sleeper"

// startSleeper starts a detached container, which must not hold our pipes.
func (r *runtime) startSleeper(bundle string) error {
	cmd := exec.Command(r.path, "--root", r.state, "run", "--detach", "--bundle", bundle, sleeper)
	cmd.Env = r.env
	return cmd.Run()
}

func (r *runtime) stopSleeper() { _, _ = r.call("delete", "--force", sleeper) }

func (r *runtime) exec() (time.Duration, error) { return r.call("exec", sleeper, "/bin/true") }

func nextID() string {
	serial++
	return "bench-" + strconv.Itoa(serial)
}

// hasSysResource looks for CAP_SYS_RESOURCE (24) among our capabilities.
func hasSysResource() bool {
	status, _ := os.ReadFile("/proc/self/status")
	_, after, _ := strings.Cut(string(status), "CapEff:")
	field, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	caps, _ := strconv.ParseUint(field, 16, 64)
	return caps&(1<<24) != 0
}
