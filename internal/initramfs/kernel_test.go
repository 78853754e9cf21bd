package initramfs

import (
	"os"
	"path/filepath"
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
