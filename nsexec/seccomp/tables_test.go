package seccomp

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func TestTablesAreSorted(t *testing.T) {
	for i := 1; i < len(callEnds); i++ {
		require.Less(t, callName(i-1), callName(i))
	}
	require.Len(t, callNames, int(callEnds[len(callEnds)-1]))
	for i := range callEnds {
		require.Equal(t, i, findCall(callName(i)))
	}
	for _, none := range []string{"", "a", "zzz", "rea", "readd", "READ"} {
		require.Equal(t, -1, findCall(none))
	}
	for _, abi := range someArches {
		a := knownArch(abi)
		require.True(t, slices.IsSortedFunc(a.table, func(x, y entry) int { return int(x.nr) - int(y.nr) }), abi)
		for i, e := range a.table {
			require.Less(t, int(e.name), len(callEnds))
			require.True(t, i == 0 || e.nr != a.table[i-1].nr)
		}
	}
	for _, l := range [][]string{socketCalls, ipcCalls} {
		for _, n := range l {
			require.True(t, n == "" || findCall(n) >= 0, n)
		}
	}
}

// TestTablesAreCurrent: every system call of x/sys is in the tables. When a new
// x/sys brings new ones, run go generate.
func TestTablesAreCurrent(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Skip("no go command to find x/sys with")
	}
	constant := regexp.MustCompile(`(?m)^\s+SYS_(\w+)\s*=\s*(\d+)$`)
	for goarch, abi := range map[string]specs.Arch{"amd64": specs.ArchX86_64, "386": specs.ArchX86, "arm64": specs.ArchAARCH64, "arm": specs.ArchARM} {
		src, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+goarch+".go"))
		require.NoError(t, err)
		numbers := refNumbers(abi)
		found := constant.FindAllSubmatch(src, -1)
		require.Greater(t, len(found), 300)
		for _, m := range found {
			name := strings.ToLower(string(m[1]))
			if name == "syscall_mask" || name == "arch_specific_syscall" {
				continue
			}
			require.Equal(t, string(m[2]), strconv.Itoa(int(numbers[name])), "%s: %s", abi, name)
		}
	}
}

// TestTablesAgainstHeaders compares with the C headers of this machine, which
// also know x32.
func TestTablesAgainstHeaders(t *testing.T) {
	const dir = "/usr/include/x86_64-linux-gnu/asm/"
	define := regexp.MustCompile(`(?m)^#define __NR_(\w+) (?:\(__X32_SYSCALL_BIT [+|] )?(\d+)\)?$`)
	for file, abi := range map[string]specs.Arch{"unistd_64.h": specs.ArchX86_64, "unistd_x32.h": specs.ArchX32, "unistd_32.h": specs.ArchX86} {
		src, err := os.ReadFile(dir + file)
		if err != nil {
			t.Skip(err)
		}
		a, numbers := knownArch(abi), refNumbers(abi)
		found := define.FindAllSubmatch(src, -1)
		require.Greater(t, len(found), 300, file)
		theirs, newest := map[string]uint32{}, uint32(0)
		for _, m := range found {
			nr, err := strconv.Atoi(string(m[2]))
			require.NoError(t, err)
			theirs[string(m[1])] = uint32(nr) | a.bit
			require.Equal(t, uint32(nr)|a.bit, numbers[string(m[1])], "%s: %s", abi, m[1])
			if nr < 512 {
				newest = max(newest, uint32(nr)|a.bit)
			}
		}
		for name, nr := range numbers { // and none of ours is unknown to them
			if nr <= newest && name != "uretprobe" && name != "uprobe" {
				require.Contains(t, theirs, name, "%s", abi)
			}
		}
	}
}
