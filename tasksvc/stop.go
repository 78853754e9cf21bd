package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// killTime is what Stop keeps of its time for the kernel to kill what is left.
const killTime = 2 * time.Second

// Stop refuses new containers and ends those there are: its stop signal to every
// init, paused ones are resumed for it, and killTime before ctx's deadline (or
// after half of the time, if that is later) a SIGKILL to everything. It returns
// when all exits are published.
func (s *Service) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	var all []*container
	for _, c := range s.containers {
		select {
		case <-c.created:
			all = append(all, c)
		default:
		}
	}
	s.mu.Unlock()

	grace := 5 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		grace = max(left-killTime, left/2)
	}
	polite, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for _, c := range all {
		_ = c.init.handle.Signal(stopSignal(c.spec.Annotations)) // ended already is fine
	}
	// A frozen process gets the signal with the thaw. Where nothing is frozen
	// this returns at once; what cannot be thawed will be killed.
	for _, c := range all {
		_ = c.cgroup.Thaw(polite)
	}
	for _, c := range all {
		_, _ = c.init.awaitExit(polite)
	}
	var errs []error
	for _, c := range all {
		if err := c.cgroup.Kill(); err != nil {
			errs = append(errs, err)
		}
	}
	for _, c := range all {
		if _, err := c.init.awaitExit(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Clear takes away the containers that Stop has ended, when those that were being
// created have become some or failed. Where the daemon is not PID 1 their cgroups
// and mounts would outlive it.
func (s *Service) Clear(ctx context.Context) error {
	created := make(chan struct{})
	go func() {
		s.creates.Wait()
		close(created)
	}()
	select {
	case <-created:
	case <-ctx.Done():
		return fmt.Errorf("containers are still being created: %w", ctx.Err())
	}
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	var errs []error
	for _, c := range all {
		if err := c.deleteInit(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		s.forget(c)
	}
	return errors.Join(errs...)
}
