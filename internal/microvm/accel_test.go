package microvm

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestDecideAccel(t *testing.T) {
	// Captured in a machine whose /dev/kvm opens and whose KVM hangs.
	guest, err := os.ReadFile("testdata/cpuinfo-kvm-guest.txt")
	require.NoError(t, err)
	intel := []byte(strings.Replace(string(guest), " pcid ", " vmx pcid ", 1))
	amd := []byte(strings.Replace(string(guest), " pcid ", " svm pcid ", 1))
	require.NotEqual(t, guest, intel)

	opens := func() error { return nil }
	denied := func() error { return &os.PathError{Op: "open", Path: "/dev/kvm", Err: os.ErrPermission} }
	tests := []struct {
		name, want, arch string
		cpuinfo          []byte
		open             func() error
		accel, reason    string
	}{
		{"intel", "auto", "amd64", intel, opens, KVM, "/dev/kvm opens"},
		{"amd", "", "amd64", amd, opens, KVM, "/dev/kvm opens"},
		{"paravirtual KVM", "auto", "amd64", guest, opens, TCG, "neither vmx nor svm"},
		{"no right", "auto", "amd64", intel, denied, TCG, "permission denied"},
		{"no cpuinfo", "auto", "amd64", nil, opens, TCG, "neither vmx nor svm"},
		{"arm has no such flags", "auto", "arm64", nil, opens, KVM, "/dev/kvm opens"},
		{"tcg wins over all", "tcg", "amd64", intel, opens, TCG, "asked for"},
		{"kvm in spite of all", "kvm", "amd64", guest, opens, KVM, "asked for"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := decideAccel(tt.want, tt.arch, tt.cpuinfo, tt.open)
			require.NoError(t, err)
			require.Equal(t, tt.accel, a.Name)
			require.Contains(t, a.Reason, tt.reason)
		})
	}

	_, err = decideAccel("kvm", "amd64", intel, denied)
	require.ErrorIs(t, err, os.ErrPermission)
	_, err = decideAccel("xen", "amd64", intel, opens)
	require.ErrorIs(t, err, sys.ErrInvalid)
}

func TestDecideAccelDoesNotTouchKVMInVain(t *testing.T) {
	_, err := decideAccel("tcg", "amd64", nil, func() error { return errors.New("opened") })
	require.NoError(t, err)
	a, err := decideAccel("auto", "amd64", nil, func() error { panic("opened") })
	require.NoError(t, err)
	require.Equal(t, TCG, a.Name)
}
