package tasksvc

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// attempts runs the probe's "try" in a container and returns how it went.
func (h *host) attempts(spec *specs.Spec, words ...string) map[string]string {
	spec.Process.Args = append([]string{"/bin/probe", "try"}, words...)
	out := filepath.Join(h.t.TempDir(), "attempts")
	require.NoError(h.t, unix.Mkfifo(out, 0o600))
	read := h.reader(out)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "attempts", Bundle: h.probeBundle(spec), Stdout: out})
	require.NoError(h.t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "attempts"})
	require.NoError(h.t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "attempts"})
	require.NoError(h.t, err)
	h.delete("attempts")
	results := map[string]string{}
	text := read()
	require.NoError(h.t, json.Unmarshal([]byte(text), &results), text)
	return results
}

func TestReadonlyRoot(t *testing.T) {
	h := newHost(t)
	for _, readonly := range []bool{false, true} {
		t.Run("", func(t *testing.T) {
			h.t = t
			s := probeSpec()
			s.Root.Readonly = readonly
			want := "ok"
			if readonly {
				want = "EROFS"
			}
			require.Equal(t, map[string]string{"mkdir:/new": want, "mkdir:/dev/new": "ok"}, h.attempts(s, "mkdir:/new", "mkdir:/dev/new"))
		})
	}
	h.t = t
}

func TestSysctls(t *testing.T) {
	h := newHost(t)
	want := map[string]string{"net/ipv4/ip_forward": "1", "kernel/msgmax": "1234", "kernel/shm_rmid_forced": "1"}
	for name, edit := range map[string]func(*specs.Spec){"plain": func(*specs.Spec) {}, "userns": fullUserNS} {
		s := probeSpec()
		s.Process.Args = []string{"/bin/probe", "report", "-sysctl", "net/ipv4/ip_forward", "-sysctl", "kernel/msgmax", "-sysctl", "kernel/shm_rmid_forced"}
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "1234", "kernel/shm_rmid_forced": "1"}
		edit(s)
		require.Equal(t, want, h.report(name, s).Sysctls, name)
	}
	for name, text := range map[string]string{
		"kernel.core_pattern": "is not separate per container", "vm.swappiness": "is not separate per container",
		"net.ipv4../../kernel.core_pattern": "is not a name", "net..x": "is not a name", "": "is not a name",
		"kernel.hostname": "needs a uts namespace",
	} {
		s := probeSpec()
		s.Linux.Sysctl = map[string]string{name: "1"}
		if name == "kernel.hostname" {
			s.Linux.Namespaces = s.Linux.Namespaces[:3]
		}
		require.ErrorIs(t, h.refused(s, text), sys.ErrInvalid, name)
	}
}

// TestSeccomp has a profile of the spec act in a container, with and without
// new privileges, and in an exec.
func TestSeccomp(t *testing.T) {
	h := newHost(t)
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Flags:         []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir", "mkdirat", "nosuchcall"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(unix.EXDEV))},
			{Names: []string{"socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpEqualTo}}},
			{Names: []string{"personality"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0xff00, ValueTwo: 0xff00, Op: specs.OpMaskedEqual}}},
		},
	}
	want := map[string]string{"mkdir:/tmp/x": "EXDEV", "socket-netlink": "EPERM", "personality": "EPERM", "socket:1,1": "ok"}
	for _, noNewPrivs := range []bool{true, false} {
		s := probeSpec()
		s.Process.NoNewPrivileges, s.Linux.Seccomp = noNewPrivs, profile
		t.Run("", func(t *testing.T) {
			h.t = t
			require.Equal(t, want, h.attempts(s, "mkdir:/tmp/x", "socket-netlink", "personality", "socket:1,1"))
		})
	}
	h.t = t
	s := probeSpec()
	s.Linux.Seccomp = profile
	proc := *s.Process
	s.Process.Args = []string{"/bin/sleep", "1000"}
	h.running("sleeper", s)
	r := h.execReport("sleeper", "exec", &proc)
	require.Equal(t, 2, r.Seccomp)
	require.Equal(t, 1, r.Filters)
}

// Annotations are the host's: any key is fine, none changes what is done.
func TestAnnotations(t *testing.T) {
	h := newHost(t)
	s := probeSpec()
	s.Annotations = map[string]string{"io.kubernetes.cri.container-type": "sandbox", "run.oci.keep_original_groups": "1", "x": ""}
	require.Equal(t, 1, h.report("c", s).PID)
}

// A config without a process can be created, and not started.
func TestNoProcess(t *testing.T) {
	h := newHost(t)
	s := probeSpec()
	s.Process = nil
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: h.probeBundle(s)})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
	require.ErrorContains(t, err, "config.json has no process to start")
	h.delete("c")
}

// TestNetDevices moves a device into a container; how in detail is tested in
// nsexec.
func TestNetDevices(t *testing.T) {
	h := newHost(t)
	a, b := fmt.Sprintf("t%d.a", os.Getpid()%1e6), fmt.Sprintf("t%d.b", os.Getpid()%1e6)
	vethPair(t, a, b)
	s := probeSpec()
	s.Linux.NetDevices = map[string]specs.LinuxNetDevice{a: {Name: "eth0"}}
	s.Linux.Sysctl = map[string]string{"net.ipv4.conf.eth0.forwarding": "1"} // it is there by then
	names := []string{}
	for _, i := range h.report("c", s).Interfaces {
		require.True(t, i.Up, i.Name)
		names = append(names, i.Name)
	}
	require.ElementsMatch(t, []string{"lo", "eth0"}, names)
	require.ErrorIs(t, h.refused(s, "linux.netDevices: move "+a+" to eth0 in the container: there is no device called "+a), sys.ErrNotFound)
}

// vethPair makes two connected devices (rtnetlink(7), veth(4)).
func vethPair(t *testing.T, a, b string) {
	attr := func(kind uint16, data ...byte) []byte {
		out := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
		out = append(binary.NativeEndian.AppendUint16(out, kind), data...)
		return append(out, make([]byte, (4-len(out)%4)%4)...)
	}
	link := func(name string) []byte {
		return append(make([]byte, unix.SizeofIfInfomsg), attr(unix.IFLA_IFNAME, append([]byte(name), 0)...)...)
	}
	info := append(attr(unix.IFLA_INFO_KIND, []byte("veth")...), attr(unix.IFLA_INFO_DATA, attr(1, link(b)...)...)...)
	body := append(link(a), attr(unix.IFLA_LINKINFO, info...)...)
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, unix.RTM_NEWLINK)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg = append(append(msg, make([]byte, 8)...), body...)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	answer := make([]byte, 1024)
	_, err = unix.Read(fd, answer)
	require.NoError(t, err)
	switch e := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); unix.Errno(e) {
	case 0: // the pair ends with the container's network namespace
	case unix.EOPNOTSUPP:
		t.Skip("this kernel has no veth")
	default:
		t.Fatal(unix.Errno(e))
	}
}
