package tasksvc

import (
	"fmt"
	"slices"

	taskapi "github.com/containerd/containerd/api/types/task"

	"vminit/internal/sys"
)

// State is where a process (a container's init or an exec) is in its life.
type State uint8

const (
	// Created: an init is built and waits at its start gate; an exec is only
	// a promise.
	Created State = iota + 1
	// Running: the user's program was loaded.
	Running
	// Paused: the container's cgroup is frozen. Only inits are paused.
	Paused
	// Stopped: the process has ended, or will never run.
	Stopped
	// Deleted: nothing of it is left; the id is free.
	Deleted
)

// validTransitions is all that can happen. Created to Stopped is the early
// exit: killed before Start, or its program could not be loaded.
var validTransitions = map[State][]State{
	Created: {Running, Stopped},
	Running: {Paused, Stopped},
	Paused:  {Running, Stopped},
	Stopped: {Deleted},
}

func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Stopped:
		return "stopped"
	case Deleted:
		return "deleted"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// status is the state as the Task API says it.
func (s State) status() taskapi.Status {
	switch s {
	case Created:
		return taskapi.Status_CREATED
	case Running:
		return taskapi.Status_RUNNING
	case Paused:
		return taskapi.Status_PAUSED
	case Stopped, Deleted:
		return taskapi.Status_STOPPED
	}
	return taskapi.Status_UNKNOWN
}

// enter moves to another state, or says why that cannot be.
func (s *State) enter(next State) error {
	if !slices.Contains(validTransitions[*s], next) {
		return sys.Mark(sys.ErrState, fmt.Errorf("a %s process cannot become %s", *s, next))
	}
	*s = next
	return nil
}
