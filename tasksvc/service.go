// Package tasksvc is the guest's control plane: containerd's Task API and the
// services beside it, over ttrpc. It owns containers and their processes, the
// order of their exits and events, and puts the rooms below together: nsexec
// launches, rootfs builds, cgroup2 limits, vsockstream carries stdio.
//
// Kernel types stay below this package, ttrpc and protobuf types never go below
// it, and errors become gRPC status codes only in errors.go. No lock is held
// while waiting for the kernel, a peer or a process.
//
// Lock order: Service.mu before container.mu before the Exchange's own.
package tasksvc

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"vminit/cgroup2"
	"vminit/internal/sys"
	"vminit/nsexec"
	"vminit/nsexec/seccomp"
	"vminit/vsockstream"
)

// Config is what a Service works with. All of it outlives the Service.
type Config struct {
	Launcher *nsexec.Launcher
	// Cgroups returns the tree containers live in, always the same one. It is
	// called after Settled.
	Cgroups     func() (*cgroup2.Tree, error)
	CgroupMount string           // where the tree's hierarchy is mounted
	Streams     *vsockstream.Hub // nil: stream:// URIs are refused
	Events      *Exchange
	Bundles     *Bundles        // its bundles go with their containers; may be nil
	Settled     <-chan struct{} // closed when the guest is ready for containers
	Complete    <-chan struct{} // closed when it has all that a container may ask for; nil: it has
	Shutdown    func()          // called once by a Shutdown that is carried out
	Version     string
	Logger      *slog.Logger
}

// Service implements the Task API. Safe for concurrent use.
type Service struct {
	cfg       Config
	log       *slog.Logger
	oomAdjust int // our own oom_score_adj
	seccomp   seccomp.Cache
	network   nsexec.SpareNetwork
	refill    *time.Timer // fills network
	tracers   atomic.Bool // some container's processes may trace others, see mayTrace

	mu         sync.Mutex // guards containers, stopping and additions to creates
	containers map[containerKey]*container
	stopping   bool
	creates    sync.WaitGroup // calls of Create that have reserved an id
}

type containerKey struct{ namespace, id string }

// NewService returns a Service without containers.
func NewService(cfg Config) (*Service, error) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return nil, err
	}
	adjust, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil {
		return nil, fmt.Errorf("/proc/self/oom_score_adj: %w", err)
	}
	s := &Service{cfg: cfg, log: cfg.Logger, oomAdjust: adjust, containers: map[containerKey]*container{}}
	s.refill = time.AfterFunc(time.Hour, s.spareNetwork)
	go guard(s.log, "first spare network", func() {
		<-cfg.Settled
		s.refill.Reset(refillDelay)
	})
	return s, nil
}

// reserve takes an id for a container that is about to be created: its init is
// busy until it is. It counts the caller among creates.
func (s *Service) reserve(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := containerKey{c.namespace, c.id}
	if s.stopping {
		return errStopping
	}
	if _, ok := s.containers[key]; ok {
		return sys.Mark(sys.ErrExists, fmt.Errorf("container %s exists already", c.id))
	}
	s.containers[key] = c
	s.creates.Add(1)
	return nil
}

// mayCreate says whether a Create that is nearly done may finish. Stop has not
// seen its container, and need not have done if it may.
func (s *Service) mayCreate() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errStopping
	}
	return nil
}

var errStopping = sys.Mark(sys.ErrState, errors.New("the daemon is shutting down"))

func (s *Service) forget(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, containerKey{c.namespace, c.id})
}

// removeBundle removes the bundle of a container that has been deleted, if it
// is one of ours and no other container uses it. That the container is gone
// does not depend on it.
func (s *Service) removeBundle(c *container) {
	if s.cfg.Bundles == nil {
		return
	}
	s.mu.Lock()
	for _, other := range s.containers {
		if other.bundle == c.bundle {
			s.mu.Unlock()
			return
		}
	}
	s.mu.Unlock()
	if err := s.cfg.Bundles.Remove(c.bundle); err != nil {
		s.log.Warn("the bundle stays", "container", c.id, "error", err)
	}
}

// find returns a container that has been created.
func (s *Service) find(namespace, id string) (*container, error) {
	s.mu.Lock()
	c, ok := s.containers[containerKey{namespace, id}]
	s.mu.Unlock()
	if ok {
		select {
		case <-c.created:
			return c, nil
		default: // Create is under way: for the others there is nothing yet
		}
	}
	return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("container %s not found", id))
}

// lookup finds a process and locks its container; the caller unlocks.
func (s *Service) lookup(namespace, id, execID string) (*container, *process, error) {
	c, err := s.find(namespace, id)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	p, err := c.process(execID)
	if err != nil {
		c.mu.Unlock()
		return nil, nil, err
	}
	return c, p, nil
}
