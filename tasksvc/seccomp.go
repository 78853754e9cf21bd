package tasksvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
	"vminit/nsexec/seccomp"
)

// listenerTimeout bounds how long a seccomp agent may take to accept.
const listenerTimeout = 10 * time.Second

// compileSeccomp turns a profile into a filter and warnings about what is left
// out of it. Profiles seen before come from the cache. notify says that an
// agent decides about some system calls.
func compileSeccomp(cache *seccomp.Cache, p *specs.LinuxSeccomp) (s *nsexec.Seccomp, notify bool, warnings []string, err error) {
	f, err := cache.Compile(p)
	if err != nil {
		return nil, false, nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	if f.Notify {
		if err := checkListener(p.ListenerPath); err != nil {
			return nil, false, nil, err
		}
	}
	deadly := slices.Contains([]specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap}, p.DefaultAction)
	return &nsexec.Seccomp{Filter: f.Insns, Flags: f.Flags, Deadly: deadly}, f.Notify, f.Warnings, nil
}

func checkListener(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return sys.Invalidf("linux.seccomp.listenerPath %q is not an absolute path", path)
	case len(path) >= len(unix.RawSockaddrUnix{}.Path):
		return sys.Invalidf("linux.seccomp.listenerPath %.32q... has %d bytes; a unix socket's has at most %d", path, len(path), len(unix.RawSockaddrUnix{}.Path)-1)
	}
	return nil
}

// sendListener hands the listener of a process that waits at the gate behind
// its filter over to the agent: one connection for one state, which is closed
// at once (config-linux.md, "The Container Process State"). state is that of the
// container, of which this may be an exec.
func sendListener(p *specs.LinuxSeccomp, proc *nsexec.Process, fd int, state specs.State) error {
	listener, err := proc.GetFd(fd)
	if err != nil {
		return fmt.Errorf("seccomp listener: %w", err)
	}
	defer unix.Close(listener)
	message, err := json.Marshal(specs.ContainerProcessState{
		Version: state.Version, Fds: []string{specs.SeccompFdName}, Pid: proc.PID(), Metadata: p.ListenerMetadata, State: state,
	})
	if err != nil {
		return err
	}
	deadline := time.Now().Add(listenerTimeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", p.ListenerPath)
	if err != nil {
		return fmt.Errorf("send the seccomp listener of process %d to linux.seccomp.listenerPath: %w", proc.PID(), err)
	}
	defer conn.Close()
	agent := conn.(*net.UnixConn)
	err = agent.SetDeadline(deadline)
	n := 0
	if err == nil { // the rights go with the first bytes, even if those are not all
		n, _, err = agent.WriteMsgUnix(message, unix.UnixRights(listener), nil)
	}
	if err == nil && n < len(message) {
		_, err = agent.Write(message[n:])
	}
	if err = errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("send the seccomp listener of process %d to linux.seccomp.listenerPath %s: %w", proc.PID(), p.ListenerPath, err)
	}
	return nil
}
