package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/internal/sys"
)

// callTimeout is how long a verb that does not wait for a container may take.
const callTimeout = 2 * time.Minute

// runtime connects to the daemon of the OCI verbs: the one of --address, or the
// one of this machine, which is started if that is wanted.
func (g *globals) runtime(ctx context.Context, start bool) (*guest, error) {
	if g.address == "" {
		return g.connectLocal(ctx, start)
	}
	guest, err := g.connect(ctx)
	if err != nil {
		return nil, err
	}
	if start { // what follows depends on where it is
		r, err := guest.runtime.List(withNamespace(ctx, g.namespace), &runtimeapi.ListRequest{})
		if err != nil && status.Code(err) != codes.Unimplemented {
			guest.Close()
			return nil, describe(err)
		}
		guest.local = r.GetLocal()
	}
	return guest, nil
}

// call connects to the daemon and runs fn, for a verb about one container. Where
// no daemon runs there is no such container.
func (g *globals) call(cmd *cobra.Command, id string, fn func(context.Context, *guest) error) error {
	ctx, cancel := g.deadline(cmd.Context(), callTimeout)
	defer cancel()
	return verbError(cmd, id, g.withRuntime(ctx, ctx, id, false, fn))
}

// verbError says what an error is about, "create c1: ...", without a status code.
func verbError(cmd *cobra.Command, id string, err error) error {
	var exit exitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.err == nil:
		return err
	case errors.As(err, &exit):
		return exitError{exit.code, fmt.Errorf("%s %s: %w", cmd.Name(), id, describe(exit.err))}
	}
	text := fmt.Errorf("%s %s: %w", cmd.Name(), id, describe(err))
	if isNotFound(err) {
		return sys.Mark(sys.ErrNotFound, text)
	}
	return text
}

func errNotFound(id string) error {
	return sys.Mark(sys.ErrNotFound, fmt.Errorf("container %s not found", id))
}

func isNotFound(err error) bool {
	return errors.Is(err, sys.ErrNotFound) || status.Code(err) == codes.NotFound
}

// container asks for one container.
func (g *guest) container(ctx context.Context, id string, process bool) (*runtimeapi.Container, error) {
	r, err := g.runtime.List(ctx, &runtimeapi.ListRequest{Id: id, Process: process})
	if err != nil {
		return nil, err
	}
	if len(r.Containers) != 1 {
		return nil, errNotFound(id)
	}
	return r.Containers[0], nil
}

// forceDelete kills the container, whatever it is doing, and deletes it. That it
// is gone already is success.
func (g *guest) forceDelete(ctx context.Context, id string) error {
	_, err := g.task.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: uint32(unix.SIGKILL), All: true})
	if err == nil {
		_, err = g.task.Wait(ctx, &taskv3.WaitRequest{ID: id})
	}
	if err == nil || status.Code(err) == codes.FailedPrecondition {
		_, err = g.task.Delete(ctx, &taskv3.DeleteRequest{ID: id})
	}
	if isNotFound(err) {
		return nil
	}
	return err
}

// ociState is the state of a container as the specification and runc's state and
// list say it.
type ociState struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func stateOf(c *runtimeapi.Container) ociState {
	s := ociState{
		Version: c.OciVersion, ID: c.Id, Pid: int(c.Pid), Status: c.Status, Bundle: c.Bundle, Rootfs: c.Rootfs,
		Created: c.Created.AsTime(), Annotations: c.Annotations,
	}
	if s.Version == "" { // it is being created
		s.Version = specs.Version
	}
	return s
}

// writeJSON prints v for people and programs.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// completeIDs offers the ids of the containers there are, for the first argument.
func (g *globals) completeIDs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	guest, err := g.runtime(ctx, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer guest.Close()
	r, err := guest.runtime.List(withNamespace(ctx, g.namespace), &runtimeapi.ListRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, c := range r.Containers {
		ids = append(ids, c.Id+"\t"+c.Status)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
