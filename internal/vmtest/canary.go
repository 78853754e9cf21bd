package vmtest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// canaryScript prints what no container may change: the guest's settings, the
// namespaces of every thread of the daemon, the processes there are (kernel
// threads come and go and have no command line), the guest's own files.
const canaryScript = `
for f in kernel/core_pattern kernel/modprobe kernel/hostname kernel/domainname vm/overcommit_memory fs/suid_dumpable; do
	echo "$f $(cat /proc/sys/$f)"
done
for t in /proc/1/task/*; do
	for n in $t/ns/*; do echo "${n##*/} $(readlink $n)"; done
done 2>/dev/null | sort -u
for p in /proc/[0-9]*; do
	c=$(tr '\0' ' ' 2>/dev/null < $p/cmdline)
	case ${p#/proc/} in $$) c= ;; esac
	test -n "$c" && echo "process ${p#/proc/} $c"
done
find /mnt -xdev -type c -exec stat -c '%n %i %a %u:%g %t:%T' {} +
find /mnt -xdev ! -type c -exec stat -c '%n %i %a %u:%g %s %Y' {} +
find /mnt -xdev -type f -exec sha256sum {} +
`

// Canary is what must be the same before and after anything a workload does.
type Canary struct{ text string }

// Canary looks, from a container with every right.
func (g *Guest) Canary(ctx context.Context, t testing.TB) Canary {
	t.Helper()
	r, err := g.Run(ctx, Privileged("/bin/sh", "-c", canaryScript))
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	require.Contains(t, r.Stdout, "/mnt/init")
	return Canary{r.Stdout}
}

// Alive looks again.
func (g *Guest) Alive(ctx context.Context, t testing.TB, before Canary) {
	t.Helper()
	now := g.Canary(ctx, t)
	missing, added := before.without(now), now.without(before)
	if len(missing)+len(added) > 0 {
		t.Errorf("the guest has changed: gone are\n%s\nnew are\n%s", strings.Join(missing, ""), strings.Join(added, ""))
	}
}

// without returns the lines that other does not have.
func (c Canary) without(other Canary) []string {
	has := map[string]bool{}
	for line := range strings.Lines(other.text) {
		has[line] = true
	}
	return slices.DeleteFunc(slices.Collect(strings.Lines(c.text)), func(line string) bool { return has[line] })
}
