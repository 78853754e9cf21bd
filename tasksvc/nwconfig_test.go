package tasksvc

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestParseNWConfig(t *testing.T) {
	list, err := parseNWConfig([]byte(`{"Networks":[{"VmMAC":"fa:43:25:5d:6f:b4","MAC":"02:00:00:00:00:01","Addrs":["192.168.127.111/24","fd00::2/64"],"IfName":"mynet0","DefaultGw4":"192.168.127.1"},
		{"VmMAC":"fa:43:25:5d:6f:b5","Future":1}]}`))
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "mynet0", list[0].Name)
	require.Equal(t, "[192.168.127.111/24 fd00::2/64] [192.168.127.1]", fmt.Sprint(list[0].Addrs, list[0].Gateways))
	require.Equal(t, "eth%d", list[1].Name)
	require.EqualValues(t, 2, list[1].MAC[0]&3, "unicast, locally administered")
	for _, empty := range []string{`{}`, `{"Networks":[]}`, `{"Networks":null}`} {
		list, err = parseNWConfig([]byte(empty))
		require.NoError(t, err)
		require.Empty(t, list)
	}
	for _, bad := range []string{``, `[]`, `{"Networks":[{}]}`, `{"Networks":[{"VmMAC":"x"}]}`, `{"Networks":[{"VmMAC":"00:00:00:00:fe:80:00:00"}]}`,
		`{"Networks":[{"VmMAC":"fa:43:25:5d:6f:b4","IfName":"../x"}]}`, `{"Networks":[{"VmMAC":"fa:43:25:5d:6f:b4","Addrs":["1.2.3.4"]}]}`,
		`{"Networks":[{"VmMAC":"fa:43:25:5d:6f:b4","DefaultGw4":"x"}]}`, `{"Networks":[` + strings.Repeat(`{"VmMAC":"fa:43:25:5d:6f:b4"},`, 40) + `{}]}`} {
		_, err = parseNWConfig([]byte(bad))
		require.Error(t, err, bad)
	}
}

// TestNWConfig connects containers with an interface of ours and has them talk
// to what is at its other end.
func TestNWConfig(t *testing.T) {
	h := newHost(t)
	ip := func(args string) {
		t.Helper()
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		require.NoError(t, err, "ip %s: %s", args, out)
	}
	ip("link add nwtest0 type veth") // busybox, in a guest, cannot name the other end
	t.Cleanup(func() { exec.Command("ip", "link", "del", "nwtest0").Run() })
	other, err := os.ReadFile("/sys/class/net/nwtest0/iflink")
	require.NoError(t, err)
	index, err := strconv.Atoi(strings.TrimSpace(string(other)))
	require.NoError(t, err)
	far, err := net.InterfaceByIndex(index)
	require.NoError(t, err)
	ip("addr add 10.77.0.1/24 dev " + far.Name)
	ip("link set " + far.Name + " up")
	up, err := net.InterfaceByName("nwtest0")
	require.NoError(t, err)
	bridge := "br-" + strings.ReplaceAll(up.HardwareAddr.String(), ":", "")
	t.Cleanup(func() { exec.Command("ip", "link", "del", bridge).Run() })
	ends := func() int {
		list, _ := filepath.Glob("/sys/class/net/ve-*")
		return len(list)
	}
	before := ends()
	config := func(text string) string {
		spec := testSpec("busybox ip addr show net0; busybox ip route; probe ask tcp://10.77.0.1:7777 </dev/null || exit 1")
		dir := h.probeBundle(spec)
		require.NoError(t, os.WriteFile(dir+"/"+nwConfigFile, []byte(text), 0o600))
		return dir
	}
	l, err := net.Listen("tcp", "10.77.0.1:7777")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "hello %s\n", c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	for i, id := range []string{"a", "b"} {
		out := h.fifo(id)
		got := h.reader(out)
		text := fmt.Sprintf(`{"Networks":[{"VmMAC":%q,"MAC":"02:77:00:00:00:0%d","Addrs":["10.77.0.1%d/24","fd77::%d/64"],"IfName":"net0","DefaultGw4":"10.77.0.1"}]}`, up.HardwareAddr, i, i, i+2)
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: config(text), Stdout: out, Stderr: out})
		require.NoError(t, err)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id})
		require.NoError(t, err)
		w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id})
		require.NoError(t, err)
		h.delete(id)
		text = got()
		require.Zero(t, w.ExitStatus, text)
		for _, want := range []string{fmt.Sprintf("02:77:00:00:00:0%d", i), fmt.Sprintf("inet 10.77.0.1%d/24", i), fmt.Sprintf("inet6 fd77::%d/64", i+2),
			"default via 10.77.0.1 dev net0", fmt.Sprintf("hello 10.77.0.1%d\n", i)} {
			require.Contains(t, text, want)
		}
	}
	// What cannot be is refused and leaves nothing.
	for text, code := range map[string]codes.Code{
		`{"Networks":[{"VmMAC":"02:99:99:99:99:99"}]}`: codes.NotFound,
		`{"Networks":[`: codes.InvalidArgument,
		fmt.Sprintf(`{"Networks":[{"VmMAC":%q,"IfName":"lo"}]}`, up.HardwareAddr):                                     codes.Unknown,
		fmt.Sprintf(`{"Networks":[{"VmMAC":%q,"Addrs":["10.77.0.9/24"],"DefaultGw4":"10.99.0.1"}]}`, up.HardwareAddr): codes.Unknown,
	} {
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "bad", Bundle: config(text)})
		require.Error(t, err, text)
		require.Equal(t, code, status.Code(toStatus(err)), "%s: %v", text, err)
	}
	shared := testSpec("true")
	shared.Linux.Namespaces = append(shared.Linux.Namespaces[:4], shared.Linux.Namespaces[5:]...)
	dir := h.bundle(shared)
	require.NoError(t, os.WriteFile(dir+"/"+nwConfigFile, []byte(fmt.Sprintf(`{"Networks":[{"VmMAC":%q}]}`, up.HardwareAddr)), 0o600))
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "bad", Bundle: dir})
	require.Equal(t, codes.InvalidArgument, status.Code(toStatus(err)), err)
	for deadline := time.Now().Add(10 * time.Second); ends() > before; time.Sleep(10 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "%d pairs are left", ends()-before)
	}
}
