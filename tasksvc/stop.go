package tasksvc

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Stop refuses new containers and ends those there are: a SIGTERM to every
// init, and, when half of the time until ctx's deadline has passed, a SIGKILL
// to everything. It returns when all exits are published.
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
		grace = time.Until(deadline) / 2
	}
	polite, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for _, c := range all {
		_ = c.init.handle.Signal(unix.SIGTERM) // ended already is fine
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
