package tasksvc

import (
	"bytes"
	"io"
	"net"
	"testing"

	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// What we code by hand is what the generated types code.
func TestTransferMessages(t *testing.T) {
	any := func(m proto.Message) *anypb.Any {
		a, err := containerdAny(m)
		require.NoError(t, err)
		return a
	}
	e, err := parseTransferEnd("source", any(&transfertypes.ContainerPath{ContainerID: "c1", Path: "/etc", NoWalk: true, PreserveOwnership: true}))
	require.NoError(t, err)
	require.Equal(t, transferEnd{kind: kindContainerPath, path: containerPath{"c1", "/etc", true, true}}, e)
	e, err = parseTransferEnd("source", any(&transfertypes.ReadStream{Stream: "s", MediaType: mediaTypeTar}))
	require.NoError(t, err)
	require.Equal(t, transferEnd{kind: kindReadStream, stream: "s"}, e)
	e, err = parseTransferEnd("destination", any(&transfertypes.WriteStream{Stream: "s"}))
	require.NoError(t, err)
	require.Equal(t, transferEnd{kind: kindWriteStream, stream: "s"}, e)

	var b bytes.Buffer
	w := &TransferWriter{rw: &b, credit: 100}
	_, err = w.Write([]byte("hello"))
	require.NoError(t, err)
	frame := new(anypb.Any)
	require.NoError(t, proto.Unmarshal(b.Bytes()[4:], frame))
	data := new(transfertypes.Data)
	require.Equal(t, "containerd.types.transfer.Data", frame.TypeUrl)
	require.NoError(t, proto.Unmarshal(frame.Value, data))
	require.Equal(t, "hello", string(data.Data))
	name, value, err := readTransferFrame(&b)
	require.NoError(t, err)
	require.Equal(t, typeData, name)
	require.Equal(t, frame.Value, value)
	update, err := proto.Marshal(&transfertypes.WindowUpdate{Update: 7})
	require.NoError(t, err)
	require.NoError(t, writeFrame(&b, "types.containerd.io/"+typeWindowUpdate, update))
	require.NoError(t, w.awaitCredit())
	require.EqualValues(t, 102, w.credit)
}

func FuzzTransferFrame(f *testing.F) {
	var b bytes.Buffer
	writeFrame(&b, typeData, []byte("\x0a\x05hello"))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewTransferReader(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(data), io.Discard})
		io.Copy(io.Discard, r)
	})
}

// The two ends of a stream: every byte, in order, and the end; a sender that
// vanishes is no end.
func TestTransferStream(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	require.NoError(t, err)
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	defer b.Close()
	want := randomBytes(3 << 20)
	go func() {
		w := NewTransferWriter(a)
		for p := want; len(p) > 0; p = p[min(len(p), 70_001):] {
			w.Write(p[:min(len(p), 70_001)])
		}
		w.CloseWrite()
	}()
	got, err := io.ReadAll(NewTransferReader(b))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	go func() {
		NewTransferWriter(a).Write(want[:1000])
		a.Close()
	}()
	got, err = io.ReadAll(NewTransferReader(b))
	require.Error(t, err, "%d bytes and no end", len(got))
}
