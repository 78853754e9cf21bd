package tasksvc

import (
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/sys"
)

// createOptions are those of containerd.runc.v1.Options that mean something
// without a runc: BinaryName, Root, SystemdCgroup and the like do not.
type createOptions struct {
	ioUID, ioGID uint32
	noKeyring    bool
}

func parseCreateOptions(a *anypb.Any) (createOptions, error) {
	if a == nil || len(a.Value) == 0 {
		return createOptions{}, nil
	}
	if string(a.MessageName()) != "containerd.runc.v1.Options" {
		return createOptions{}, sys.Invalidf("options of type %s: containerd.runc.v1.Options is known", a.TypeUrl)
	}
	var o runcoptions.Options
	if err := proto.Unmarshal(a.Value, &o); err != nil {
		return createOptions{}, sys.Invalidf("options: %w", err)
	}
	if o.NoPivotRoot {
		return createOptions{}, sys.Unsupportedf("option NoPivotRoot: a container always pivots into its root; in an initramfs, too")
	}
	return createOptions{ioUID: o.IoUid, ioGID: o.IoGid, noKeyring: o.NoNewKeyring}, nil
}
