package tasksvc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

const mediaTypeTar = "application/x-tar"

// Transfer is containerd's Transfer service for files of containers: from a
// ContainerPath to a WriteStream, and from a ReadStream to a ContainerPath, as
// tar archives. It owns the streams.
type Transfer struct {
	tasks *Service
	hub   *vsockstream.Hub
}

// NewTransfer returns the service over the containers of tasks. hub is where
// the host opens the streams.
func NewTransfer(tasks *Service, hub *vsockstream.Hub) *Transfer { return &Transfer{tasks, hub} }

// Register adds the service to srv.
func (t *Transfer) Register(srv *ttrpc.Server) { transferapi.RegisterTTRPCTransferService(srv, t) }

// containerPath is containerd.types.transfer.ContainerPath.
type containerPath struct {
	id, path              string
	noWalk, preserveOwner bool
}

// transferEnd is a source or destination: a ContainerPath, or the id of a
// ReadStream or WriteStream.
type transferEnd struct {
	kind   string // the message's name
	path   containerPath
	stream string
}

const (
	kindContainerPath = "containerd.types.transfer.ContainerPath"
	kindReadStream    = "containerd.types.transfer.ReadStream"
	kindWriteStream   = "containerd.types.transfer.WriteStream"
)

func parseTransferEnd(what string, a *anypb.Any) (e transferEnd, err error) {
	if a == nil {
		return e, sys.Invalidf("transfer: there is no %s", what)
	}
	mediaType := ""
	switch e.kind = string(a.MessageName()); e.kind {
	case kindContainerPath:
		err = eachField(a.Value, func(num protowire.Number, v uint64, data []byte) {
			switch num {
			case 1:
				e.path.id = string(data)
			case 2:
				e.path.path = string(data)
			case 3:
				e.path.noWalk = v != 0
			case 4:
				e.path.preserveOwner = v != 0
			}
		})
	case kindReadStream, kindWriteStream:
		err = eachField(a.Value, func(num protowire.Number, _ uint64, data []byte) {
			switch num {
			case 1:
				e.stream = string(data)
			case 2:
				mediaType = string(data)
			}
		})
	}
	if err == nil && mediaType != "" && mediaType != mediaTypeTar {
		err = sys.Unsupportedf("transfer: media type %.64q: only %s is supported", mediaType, mediaTypeTar)
	}
	return e, err
}

// Transfer implements Transfer.Transfer.
func (t *Transfer) Transfer(ctx context.Context, r *transferapi.TransferRequest) (*emptypb.Empty, error) {
	src, err := parseTransferEnd("source", r.Source)
	if err != nil {
		return nil, err
	}
	dst, err := parseTransferEnd("destination", r.Destination)
	if err != nil {
		return nil, err
	}
	switch {
	case src.kind == kindContainerPath && dst.kind == kindWriteStream:
		return empty, t.withStream(ctx, dst.stream, func(c vsockstream.Conn) error { return t.export(ctx, src.path, c) })
	case src.kind == kindReadStream && dst.kind == kindContainerPath:
		return empty, t.withStream(ctx, src.stream, func(c vsockstream.Conn) error { return t.receive(ctx, dst.path, c) })
	}
	return nil, sys.Unsupportedf("transfer from %.64s to %.64s is not supported: files go from a ContainerPath to a WriteStream, or from a ReadStream to a ContainerPath", src.kind, dst.kind)
}

// withStream claims a stream, runs fn on it until it is done or ctx ends, and
// sees to it that the stream is closed.
func (t *Transfer) withStream(ctx context.Context, id string, fn func(vsockstream.Conn) error) error {
	if t.hub == nil {
		return sys.Unsupportedf("no stream listener is configured")
	}
	c, err := t.hub.Claim(ctx, id)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err = fn(c)
	if !stop() && err != nil {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		c.Close() // the other side must not wait for what does not come
		return err
	}
	go linger(c)
	return nil
}

// linger closes a stream once its peer has, or after a while.
func linger(c vsockstream.Conn) {
	defer c.Close()
	if c.SetDeadline(time.Now().Add(streamLinger)) == nil && c.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, c)
	}
}

// enter finds a container and opens its root.
func (t *Transfer) enter(ctx context.Context, id string) (*containerRoot, error) {
	c, p, err := t.tasks.lookup(namespaceOf(ctx), id, "")
	if err != nil {
		return nil, err
	}
	ended := p.early.ended
	handle := p.handle
	c.mu.Unlock()
	if ended {
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("container %s has ended: its files cannot be reached any more", id))
	}
	return openContainerRoot(handle, c.spec.Linux.UIDMappings, c.spec.Linux.GIDMappings)
}

// export sends a path of a container.
func (t *Transfer) export(ctx context.Context, path containerPath, c vsockstream.Conn) error {
	root, err := t.enter(ctx, path.id)
	if err != nil {
		return err
	}
	defer root.close()
	out := NewTransferWriter(c)
	buffered := bufio.NewWriterSize(out, transferChunk)
	if err := root.copyOut(buffered, path.path, path.noWalk); err != nil {
		return fmt.Errorf("copy %q out of container %s: %w", path.path, path.id, err)
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("copy %q out of container %s: %w", path.path, path.id, err)
	}
	return out.CloseWrite()
}

// receive extracts an archive below a path of a container.
func (t *Transfer) receive(ctx context.Context, path containerPath, c vsockstream.Conn) error {
	root, err := t.enter(ctx, path.id)
	if err != nil {
		return err
	}
	defer root.close()
	in := NewTransferReader(c)
	if err := root.copyIn(in, path.path, path.preserveOwner); err != nil {
		return fmt.Errorf("copy to %q in container %s: %w", path.path, path.id, err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // what tars put behind the end
		return fmt.Errorf("copy to %q in container %s: the stream has no end: %w", path.path, path.id, err)
	}
	return nil
}
