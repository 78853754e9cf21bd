package vmtest

import (
	"context"
	"fmt"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestOCIHooks runs hooks over the wire. A guest has no programs of its own:
// those of the guest come from the container's root file system. What they
// write down is shown by another container.
func TestOCIHooks(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		id := "c" + NewID()
		config := Spec("/bin/true")
		busybox := func() string { return "/run/bundles/" + id + "/rootfs/bin/busybox" }
		hook := func(script string) []specs.Hook {
			return []specs.Hook{{Path: busybox(), Args: []string{"sh", "-c", script}, Timeout: ptr(30)}}
		}
		const note = "/run/hooks-of-test"
		sees := func(name string) string {
			return fmt.Sprintf("b="+busybox()+"; { echo %s; $b readlink /proc/self/ns/pid; $b cat; echo; } >> "+note, name)
		}
		config.Annotations = map[string]string{"org.example": "yes"}
		config.Hooks = &specs.Hooks{
			CreateRuntime: hook(sees("createRuntime")), CreateContainer: hook(sees("createContainer")),
			StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "/bin/busybox readlink /proc/self/root; /bin/busybox id -u >&2; exit 4"}}},
			Poststop:       []specs.Hook{{Path: "/no/such/program"}},
		}
		r := &taskv3.CreateTaskRequest{ID: id, Rootfs: RootMounts()}
		p, err := g.CreateRaw(ctx, r, marshal(t, config), false)
		require.NoError(t, err)
		err = p.Start(ctx)
		require.ErrorContains(t, err, "startContainer hook 0, /bin/sh: exit status 4: 0")
		require.NoError(t, p.Delete(ctx), "whatever becomes of poststop hooks")
		p.Abandon()

		show := Privileged("/bin/sh", "-c", "cat /mnt"+note+"; rm /mnt"+note)
		show.Mounts[3].Source, show.Mounts[3].Destination = "/run", "/mnt/run"
		seen, err := g.Run(ctx, show)
		require.NoError(t, err)
		require.Regexp(t, `^createRuntime\npid:\[\d+\]\n\{"ociVersion":"1\.3\.0","id":"`+id+`","status":"creating","pid":\d+,"bundle":"/run/bundles/`+id+`","annotations":\{"org\.example":"yes"\}\}\n`+
			`createContainer\npid:\[\d+\]\n\{"ociVersion":"1\.3\.0","id":"`+id+`","status":"creating","pid":1,"bundle"`, seen.Stdout, seen.Stderr)

		// One that fails ends Create, and the code and the text get through.
		id = "c" + NewID()
		config.Hooks = &specs.Hooks{CreateContainer: hook("echo no luck >&2; exit 1")}
		_, err = g.CreateRaw(ctx, &taskv3.CreateTaskRequest{ID: id, Rootfs: RootMounts()}, marshal(t, config), false)
		require.ErrorContains(t, err, "createContainer hook 0, /run/bundles/"+id+"/rootfs/bin/busybox: exit status 1: no luck")
		require.Equal(t, codes.Unknown, status.Code(err))
	})
}
