package tasksvc

import (
	"os"
	"strings"
	"testing"

	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Whatever an archive holds, and whatever links the container has in its way,
// nothing is written outside of the destination.
func TestTransferEscapes(t *testing.T) {
	h := newTransferHost(t)
	h.running("c1", testSpec("sleep 1000"))
	root := h.rootOf("c1")
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(outside+"/f", []byte("mine"), 0o600))
	for _, dir := range []string{"dst", "data"} {
		require.NoError(t, os.Mkdir(root+"/"+dir, 0o755))
	}
	require.NoError(t, os.WriteFile(root+"/data/f", []byte("data"), 0o644))
	require.NoError(t, os.Symlink("/data", root+"/dst/abs"))
	require.NoError(t, os.Symlink("../data", root+"/dst/rel"))
	require.NoError(t, os.Symlink(strings.Repeat("../", 20)+outside, root+"/dst/out"))
	require.NoError(t, os.Symlink("sub", root+"/dst/in"))
	require.NoError(t, os.Mkdir(root+"/dst/sub", 0o755))
	file := func(name string) *tarHeader { return &tarHeader{name: name, kind: tarRegular, size: 3} }
	for name, members := range map[string][]*tarHeader{
		"dotdot":       {file("../f")},
		"inner dotdot": {file("a/../../f")},
		"harmless too": {file("a/../f")},
		"abs link":     {file("abs/f")},
		"rel link":     {file("rel/f")},
		"out link":     {file("out/f")},
		"own link":     {{name: "l", kind: tarSymlink, link: "/data"}, file("l/f")},
		"own up":       {{name: "u", kind: tarSymlink, link: ".."}, file("u/data/f")},
		"hard link":    {{name: "h", kind: tarHardLink, link: "../data/f"}},
		"hard by link": {{name: "h", kind: tarHardLink, link: "abs/f"}},
		"dir by link":  {{name: "abs/", kind: tarDir, mode: 0o700}},
		"device":       {{name: "d", kind: tarChar, major: 1, minor: 1}},
		"odd":          {{name: "d", kind: 'V'}},
	} {
		err := h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/dst"}, archive(t, members))
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", name, err)
	}
	// A link stays a link when a file comes in its place.
	require.NoError(t, h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/dst"}, archive(t, []*tarHeader{
		file("/slash"), file("abs"), file("in/f"), {name: "sub/", kind: tarDir, mode: 0o711}, {name: ".", kind: tarDir}})))
	for name, want := range map[string]string{"/data/f": "data", "/dst/slash": "xxx", "/dst/abs": "xxx", "/dst/sub/f": "xxx"} {
		got, err := os.ReadFile(root + name)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	got, err := os.ReadFile(outside + "/f")
	require.NoError(t, err)
	require.Equal(t, "mine", string(got))
	st, err := os.Stat(root + "/dst/sub")
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o711, st.Mode())
	// The root of the container is the root: its own absolute links are fine.
	require.NoError(t, os.Symlink("/data", root+"/usrdata"))
	require.NoError(t, h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/"}, archive(t, []*tarHeader{file("usrdata/g"), {name: "usrdata/", kind: tarDir, mode: 0o700}})))
	require.FileExists(t, root+"/data/g")
	// A file in the place of a directory.
	require.Equal(t, codes.FailedPrecondition, status.Code(h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/"}, archive(t, []*tarHeader{file("dst")}))))
}

// What is the kernel's is not written to, though a link of the container's leads
// there: the daemon may do what the container may not.
func TestTransferIntoKernel(t *testing.T) {
	h := newTransferHost(t)
	spec := testSpec("sleep 1000")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"})
	h.running("c1", spec)
	root := h.rootOf("c1")
	require.NoError(t, os.Symlink("/proc/1/oom_score_adj", root+"/tmp/file"))
	require.NoError(t, os.Symlink("/proc/1", root+"/tmp/dir"))
	member := []*tarHeader{{name: "oom_score_adj", kind: tarRegular, size: 3}}
	for path, members := range map[string][]*tarHeader{
		"/tmp/file":          member,
		"/tmp/dir":           member,
		"/sys/fs/cgroup/new": member,
		"/proc/1":            member,
		"/":                  {{name: "proc/1/oom_score_adj", kind: tarRegular, size: 3}},
		"/sys/fs":            {{name: "cgroup/new/", kind: tarDir, mode: 0o755}},
		"/proc/self/fd":      {{name: "l", kind: tarSymlink, link: "x"}},
	} {
		err := h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: path}, archive(t, members))
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", path, err)
	}
	// A mount point in an archive of a whole root is there already.
	require.NoError(t, h.in(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/"}, archive(t, []*tarHeader{
		{name: "proc/", kind: tarDir, mode: 0o700}, {name: "tmp/f", kind: tarRegular, size: 3}})))
	st, err := os.Stat(root + "/proc")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o555), st.Mode().Perm())
}
