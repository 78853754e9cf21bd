package initramfs

import (
	"bytes"
	"debug/elf"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A real module keeps all but its type information.
func TestEmptyBTF(t *testing.T) {
	_, release, err := FindKernel()
	if err != nil {
		skipBoot(t, err.Error())
	}
	files, err := ResolveModules(DefaultModulesDir, release, []string{"vsock"})
	require.NoError(t, err)
	if len(files) == 0 {
		t.Skip("vsock is built in")
	}
	data, err := readModule(filepath.Join(DefaultModulesDir, release, files[0]))
	require.NoError(t, err)
	before, err := elf.NewFile(bytes.NewReader(data))
	require.NoError(t, err)
	after, err := elf.NewFile(bytes.NewReader(emptyBTF(stripSignature(bytes.Clone(data)))))
	require.NoError(t, err)
	require.Equal(t, len(before.Sections), len(after.Sections))
	for i, s := range before.Sections {
		if s.Name == ".BTF" {
			require.NotZero(t, s.Size)
			require.Zero(t, after.Sections[i].Size)
			continue
		}
		require.Equal(t, s.SectionHeader, after.Sections[i].SectionHeader)
	}
}

func FuzzEmptyBTF(f *testing.F) {
	f.Add([]byte("\x7fELF\x02\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if got := emptyBTF(bytes.Clone(data)); len(got) != len(data) {
			t.Errorf("%d bytes became %d", len(data), len(got))
		}
	})
}
