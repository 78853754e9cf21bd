package tasksvc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/nsexec"
)

// OCIState is the state of a container as runtime.md, "State", defines it. pid
// is left out if it is 0. A relative bundle is taken from the working directory.
func OCIState(id, bundle string, status specs.ContainerState, pid int, annotations map[string]string) specs.State {
	if abs, err := filepath.Abs(bundle); err == nil {
		bundle = abs
	}
	return specs.State{Version: specs.Version, ID: id, Status: status, Pid: pid, Bundle: bundle, Annotations: annotations}
}

// statePaused is what the specification allows runtimes to add, and runc has.
const statePaused specs.ContainerState = "paused"

// OCI is the state of an init as the specification calls it.
func (s State) OCI() specs.ContainerState {
	switch s {
	case Created:
		return specs.StateCreated
	case Running:
		return specs.StateRunning
	case Paused:
		return statePaused
	}
	return specs.StateStopped
}

// ociState is the container's state for those who are told on the way.
func (c *container) ociState(status specs.ContainerState, pid int) specs.State {
	return OCIState(c.id, c.bundle, status, pid, c.spec.Annotations)
}

// pidInside is the pid that a process has in its own pid namespace (NSpid in
// proc_pid_status(5), Linux 4.1).
func pidInside(p *nsexec.Process) (inside int, err error) {
	err = p.WhileAlive(func(pid int) error {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return err
		}
		inside, err = innermostPID(status)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("pid of process %d in its namespace: %w", p.PID(), err)
	}
	return inside, nil
}

// innermostPID reads the last number of the line NSpid.
func innermostPID(status []byte) (int, error) {
	const key = "NSpid:"
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				return strconv.Atoi(string(f[len(f)-1]))
			}
		}
	}
	return 0, fmt.Errorf("status has no %s", key)
}
