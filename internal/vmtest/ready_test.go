package vmtest

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/microvm"
)

// A host that follows systemd's convention hears when the guest is up, and
// containers find the guest's resolver and their own names in their bundles.
func TestReadyAndEtcFiles(t *testing.T) {
	Require(t)
	messages := make(chan string, 1)
	g := Boot(t, func(c *microvm.Config) {
		c.Params = append(c.Params, "systemd.set_credential=vmm.notify_socket:vsock:2:7007",
			"ip=10.9.0.2::10.9.0.1:255.255.255.0:box:dummy0:none:10.9.0.53")
		c.Serve = map[uint32]func(net.Conn){7007: func(conn net.Conn) {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(bootTimeout))
			b, err := io.ReadAll(io.LimitReader(conn, 1024))
			if err != nil {
				b = []byte(err.Error())
			}
			messages <- string(b)
		}}
	})
	ctx := Context(t)
	select {
	case m := <-messages:
		require.Equal(t, "READY=1\n", m)
	case <-ctx.Done():
		t.Fatal("the guest does not tell that it is up")
	}

	spec := Spec("/bin/sh", "-c", "cat /etc/resolv.conf /etc/hosts /etc/hostname; hostname")
	spec.Hostname = "inner"
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: name, Options: []string{"bind", "ro"}})
	}
	r, err := g.Run(ctx, spec)
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	require.Equal(t, "nameserver 10.9.0.53\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tinner\ninner\ninner\n", r.Stdout)
}
