package initramfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestFindKernel(t *testing.T) {
	const boot, modules = "boot", "modules"
	for _, tc := range []struct {
		name  string
		files []string
		want  string // image, empty for an error
		text  string // of the error
	}{
		{"cloud kernel first", []string{
			"boot/vmlinuz-6.1.0-9-cloud-amd64", "modules/6.1.0-9-cloud-amd64/modules.dep",
			"boot/vmlinuz-6.12.1-amd64", "modules/6.12.1-amd64/modules.dep",
		}, "boot/vmlinuz-6.1.0-9-cloud-amd64", ""},
		{"newest by number", []string{
			"boot/vmlinuz-6.1.0-9-amd64", "modules/6.1.0-9-amd64/modules.dep",
			"boot/vmlinuz-6.1.0-56-amd64", "modules/6.1.0-56-amd64/modules.dep",
		}, "boot/vmlinuz-6.1.0-56-amd64", ""},
		{"one without modules is passed over", []string{
			"boot/vmlinuz-6.1.0-9-amd64", "modules/6.1.0-9-amd64/modules.dep",
			"boot/vmlinuz-6.1.0-56-amd64",
		}, "boot/vmlinuz-6.1.0-9-amd64", ""},
		{"image beside its modules", []string{
			"modules/6.12.1-arch1-1/vmlinuz", "modules/6.12.1-arch1-1/modules.dep",
		}, "modules/6.12.1-arch1-1/vmlinuz", ""},
		{"another architecture's cloud kernel is not preferred", []string{
			"boot/vmlinuz-6.1.0-9-cloud-arm64", "modules/6.1.0-9-cloud-arm64/modules.dep",
			"boot/vmlinuz-6.1.0-56-amd64", "modules/6.1.0-56-amd64/modules.dep",
		}, "boot/vmlinuz-6.1.0-56-amd64", ""},
		{"none", nil, "", "apt-get install linux-image-cloud-amd64"},
		{"none usable", []string{"boot/vmlinuz-6.1.0-9-amd64"}, "", "6.1.0-9-amd64/modules.dep"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for _, f := range tc.files {
				require.NoError(t, os.MkdirAll(filepath.Dir(f), 0o755))
				require.NoError(t, os.WriteFile(f, nil, 0o644))
			}
			image, release, err := findKernel(boot, modules, "amd64")
			if tc.want == "" {
				require.ErrorIs(t, err, sys.ErrNotFound)
				require.ErrorContains(t, err, tc.text)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, image)
			require.DirExists(t, filepath.Join(modules, release))
		})
	}
}

func TestCompareReleases(t *testing.T) {
	ascending := []string{"", "5.10.0", "6.1", "6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-56-amd64x", "6.12.1", "10.0"}
	for i, a := range ascending {
		for j, b := range ascending {
			got := compareReleases(a, b)
			require.Equal(t, i < j, got < 0, "%q %q", a, b)
			require.Equal(t, i == j, got == 0, "%q %q", a, b)
		}
	}
}

func TestKernelRelease(t *testing.T) {
	image, release, err := FindKernel()
	if err != nil {
		t.Skip(err)
	}
	got, err := KernelRelease(image)
	require.NoError(t, err)
	require.Equal(t, release, got)

	other := filepath.Join(t.TempDir(), "vmlinux-1.2.3")
	require.NoError(t, os.WriteFile(other, []byte("\x7fELF"), 0o600))
	got, err = KernelRelease(other)
	require.NoError(t, err)
	require.Equal(t, "1.2.3", got)
	_, err = KernelRelease("/no/such")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzBzImageRelease(f *testing.F) {
	head := make([]byte, 0x300)
	copy(head[0x202:], "HdrS")
	head[0x20e] = 0x80
	copy(head[0x280:], "6.1.0 (me)")
	f.Add(head)
	f.Fuzz(func(t *testing.T, head []byte) {
		if r := bzImageRelease(head); strings.ContainsAny(r, "/ \x00") || r == ".." {
			t.Fatalf("%q", r)
		}
	})
}

// TestKernelEnv: a kernel without modules is given none.
func TestKernelEnv(t *testing.T) {
	own := filepath.Join(t.TempDir(), "vmlinux-0.0.1-own")
	require.NoError(t, os.WriteFile(own, []byte("\x7fELF"), 0o600))
	t.Setenv(KernelEnv, own)
	image, release, err := FindKernel()
	require.NoError(t, err)
	require.Equal(t, own, image)
	require.Empty(t, release)
	require.Equal(t, Config{Init: "/x", Compression: None}, Usual("/x", release))
	require.Equal(t, Config{Init: "/x", Compression: None}, Usual("/x", "0.0.1-own"))

	t.Setenv(KernelEnv, "/no/such")
	_, _, err = FindKernel()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, KernelEnv)

	t.Setenv(KernelEnv, "")
	if _, release, err := FindKernel(); err == nil {
		require.Equal(t, DefaultLateModules(), Usual("/x", release).LateModules)
		require.Equal(t, release, Usual("/x", release).KernelRelease)
	}
}

func TestCheckRelease(t *testing.T) {
	require.NoError(t, checkRelease(capturedDir, capturedRelease))
	require.ErrorIs(t, checkRelease(capturedDir, "6.1.0-nope"), sys.ErrNotFound)
	for _, release := range []string{"", ".", "..", "a/b"} {
		require.Error(t, checkRelease(capturedDir, release), release)
	}
	dir := t.TempDir()
	all := filepath.Join(dir, "6.1.0-builtin")
	require.NoError(t, os.Mkdir(all, 0o755))
	require.ErrorIs(t, checkRelease(dir, "6.1.0-builtin"), sys.ErrNotFound)
	require.NoError(t, os.WriteFile(filepath.Join(all, "modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\n"), 0o644))
	require.NoError(t, checkRelease(dir, "6.1.0-builtin"))
}
