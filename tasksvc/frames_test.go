package tasksvc

import (
	"encoding/binary"
	"reflect"
	"testing"

	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "vminit/api/services/guest/v1"
	_ "vminit/api/services/socketforward/v1"
	_ "vminit/api/services/stdio/v1"
)

// makeFrame returns a ttrpc frame.
func makeFrame(id uint32, kind, flags byte, payload []byte) []byte {
	b := make([]byte, frameHeaderLen, frameHeaderLen+len(payload))
	binary.BigEndian.PutUint32(b, uint32(len(payload)))
	binary.BigEndian.PutUint32(b[4:], id)
	b[8], b[9] = kind, flags
	return append(b, payload...)
}

func request(service, method string, body proto.Message) []byte {
	req := &ttrpc.Request{Service: service, Method: method}
	if body != nil {
		req.Payload, _ = proto.Marshal(body)
	}
	b, err := proto.Marshal(req)
	if err != nil {
		panic(err)
	}
	return b
}

// TestTakesStream: the methods that may receive data frames are exactly those
// that the definitions of all linked services say.
func TestTakesStream(t *testing.T) {
	checked := 0
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				require.Equal(t, m.IsStreamingClient(), takesStream(string(s.FullName()), string(m.Name())), m.FullName())
				checked++
			}
		}
		return true
	})
	require.Greater(t, checked, 20)
}

func TestRequestMethod(t *testing.T) {
	service, method := requestMethod(request("a.b", "C", &ttrpc.Request{Service: "inner"}))
	require.Equal(t, []string{"a.b", "C"}, []string{service, method})

	twice := protowire.AppendTag(request("a.b", "C", nil), 2, protowire.BytesType)
	twice = protowire.AppendString(twice, "D")
	_, method = requestMethod(twice)
	require.Equal(t, "D", method, "the last one wins, as ttrpc sees it")
	service, method = requestMethod([]byte{0x0a, 0xff})
	require.Empty(t, service+method)
}

// seenFrame is what a scanner reported.
type seenFrame struct {
	f       frame
	payload string
}

// scanPieces runs a scanner over data cut into pieces; every data frame with
// an id divisible by 4 is turned into one to be ignored.
func scanPieces(data []byte, size int) (seen []seenFrame, out []byte) {
	s := frameScanner{
		header: func(f frame) (byte, bool) {
			if f.kind == frameData && f.id%4 == 0 {
				return frameIgnored, false
			}
			return f.kind, f.kind == frameRequest
		},
		end: func(f frame, payload []byte) { seen = append(seen, seenFrame{f, string(payload)}) },
	}
	out = append([]byte(nil), data...)
	for rest := out; len(rest) > 0; {
		n := min(size, len(rest))
		s.scan(rest[:n])
		rest = rest[n:]
	}
	return seen, out
}

func TestFrameScanner(t *testing.T) {
	var in []byte
	in = append(in, make([]byte, 10)...) // the readiness probe
	in = append(in, makeFrame(1, frameRequest, 2, []byte("hello"))...)
	in = append(in, makeFrame(4, frameData, 1, []byte("xy"))...)
	in = append(in, makeFrame(5, frameData, 4, nil)...)
	in = append(in, makeFrame(7, frameRequest, 0, make([]byte, maxPeek+1))...)
	want := []seenFrame{
		{frame{}, ""},
		{frame{5, 1, frameRequest, 2}, "hello"},
		{frame{2, 4, frameIgnored, 1}, ""},
		{frame{0, 5, frameData, 4}, ""},
		{frame{maxPeek + 1, 7, frameRequest, 0}, ""},
	}
	for size := 1; size < 40; size++ {
		seen, out := scanPieces(in, size)
		require.Equal(t, want, seen, "pieces of %d", size)
		require.Equal(t, byte(frameIgnored), out[10+15+8])
	}
}

// FuzzFrameScanner: how the bytes are cut makes no difference, and nothing but
// type bytes changes.
func FuzzFrameScanner(f *testing.F) {
	f.Add(makeFrame(1, frameRequest, 0, request("a", "B", nil)), 3)
	f.Add(append(make([]byte, 10), makeFrame(4, frameData, 1, []byte("x"))...), 1)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0, 1, 2, 3}, 5)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if size < 1 || size > 1<<20 {
			return
		}
		whole, out := scanPieces(data, len(data)+1)
		pieces, out2 := scanPieces(data, size)
		if !reflect.DeepEqual(whole, pieces) || string(out) != string(out2) {
			t.Fatalf("%v\n%v", whole, pieces)
		}
		for i := range out {
			if out[i] != data[i] && (data[i] != frameData || out[i] != frameIgnored) {
				t.Fatalf("byte %d became %d", i, out[i])
			}
		}
	})
}

func FuzzRequestMethod(f *testing.F) {
	f.Add(request("a.b", "C", nil))
	f.Fuzz(func(t *testing.T, payload []byte) {
		service, method := requestMethod(payload)
		var req ttrpc.Request
		if proto.Unmarshal(payload, &req) == nil && (service != req.Service || method != req.Method) {
			t.Fatalf("%q %q, protobuf says %q %q", service, method, req.Service, req.Method)
		}
	})
}
