package boot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestCredentials(t *testing.T) {
	smbios, fwcfg := t.TempDir(), t.TempDir()
	write := func(name, content string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	}
	write(filepath.Join(smbios, "11-0/raw"), "\x0b\x05\x00\x0b\x03"+"io.systemd.credential:vmm.notify_socket=vsock:2:9999\x00"+
		"io.systemd.credential.binary:bin=AAEC\x00"+"unrelated\x00"+"io.systemd.credential.binary:bad=?\x00\x00"+"io.systemd.credential:after=end\x00")
	write(filepath.Join(smbios, "11-1/raw"), "\x0b")
	write(filepath.Join(smbios, "1-0/raw"), "\x01\x05\x00\x0b\x03io.systemd.credential:no=no\x00\x00")
	write(filepath.Join(fwcfg, "file/raw"), "value\n")
	c := Credentials{}
	require.NoError(t, c.fromSMBIOS(smbios))
	require.NoError(t, c.fromFwCfg(fwcfg))
	c.fromCmdline(ParseCmdline("systemd.set_credential=a:b:c systemd.set_credential_binary=d:ZQ== systemd.set_credential=junk systemd.set_credential=../x:y"))
	require.Equal(t, Credentials{"vmm.notify_socket": "vsock:2:9999", "bin": "\x00\x01\x02", "file": "value\n", "a": "b:c", "d": "e"}, c)
	require.NoError(t, c.fromSMBIOS("/nonexistent"))
	require.NoError(t, c.fromFwCfg("/nonexistent"))
}

func FuzzSMBIOSStrings(f *testing.F) {
	f.Add([]byte("\x0b\x05\x00\x0b\x01io.systemd.credential:a=b\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := Credentials{}
		for _, s := range smbiosStrings(b) {
			c.addOEM(s)
		}
		for name := range c {
			if name == "" || filepath.Base(name) != name && name != "." && name != ".." {
				t.Errorf("name %q", name)
			}
		}
	})
}

func TestChooseMachineID(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	require.Equal(t, id, chooseMachineID("", "uninitialized", "01234567-89AB-CDEF-0123-456789ABCDEF\n", "x"))
	require.Empty(t, chooseMachineID("00000000-0000-0000-0000-000000000000", "ffffffffffffffffffffffffffffffff", id[:30], ""))
}

func TestParseNotifySocket(t *testing.T) {
	types, to, err := parseNotifySocket("vsock:2:1234")
	require.NoError(t, err)
	require.Equal(t, []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET, unix.SOCK_STREAM}, types)
	require.Equal(t, &unix.SockaddrVM{CID: 2, Port: 1234}, to)
	types, _, err = parseNotifySocket("vsock-stream:2:1\n")
	require.NoError(t, err)
	require.Equal(t, []int{unix.SOCK_STREAM}, types)
	for _, bad := range []string{"/run/x", "vsock:2", "vsock::", "vsock:-1:1", "vsock:2:99999999999", "vsock-x:2:1"} {
		_, _, err := parseNotifySocket(bad)
		require.Error(t, err, bad)
	}
	require.NoError(t, NotifyHost(nil), "nobody wants to know")
}
