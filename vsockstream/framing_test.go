package vsockstream

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vminit/internal/sys"
)

func TestFramingNames(t *testing.T) {
	for _, f := range []Framing{FramingU32, FramingString} {
		got, err := ParseFraming(f.String())
		require.NoError(t, err)
		require.Equal(t, f, got)
	}
	_, err := ParseFraming("u64")
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.Equal(t, "Framing(7)", Framing(7).String())
}

func TestEncode(t *testing.T) {
	for _, c := range []struct {
		f    Framing
		id   string
		want string // "" is an error
	}{
		{FramingU32, "7", "\x00\x00\x00\x07"},
		{FramingU32, "0", "\x00\x00\x00\x00"},
		{FramingU32, "4294967295", "\xff\xff\xff\xff"},
		{FramingU32, "4294967296", ""},
		{FramingU32, "07", ""},
		{FramingU32, "+7", ""},
		{FramingU32, "-1", ""},
		{FramingU32, "0x7", ""},
		{FramingU32, " 7", ""},
		{FramingU32, "", ""},
		{FramingString, "c1-stdin", "\x00\x00\x00\x08c1-stdin"},
		{FramingString, "", ""},
		{FramingString, strings.Repeat("x", maxID), "\x00\x00\x10\x00" + strings.Repeat("x", maxID)},
		{FramingString, strings.Repeat("x", maxID+1), ""},
		{Framing(9), "7", ""},
	} {
		got, err := c.f.encode(c.id)
		if c.want == "" {
			require.ErrorIs(t, err, sys.ErrInvalid, "%v %.20q", c.f, c.id)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, string(got))
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		f    Framing
		in   string
		want error
	}{
		"nothing":         {FramingU32, "", io.EOF},
		"short":           {FramingU32, "\x00\x00", io.ErrUnexpectedEOF},
		"nothing, string": {FramingString, "", io.EOF},
		"length only":     {FramingString, "\x00\x00\x00\x05", io.ErrUnexpectedEOF},
		"short text":      {FramingString, "\x00\x00\x00\x05abc", io.ErrUnexpectedEOF},
		"too long":        {FramingString, "\x00\x00\x10\x01abc", sys.ErrInvalid},
		"absurdly long":   {FramingString, "\xff\xff\xff\xff", sys.ErrInvalid},
		"empty id":        {FramingString, "\x00\x00\x00\x00", sys.ErrInvalid},
		"unknown framing": {Framing(9), "\x00\x00\x00\x00", sys.ErrInvalid},
	} {
		id, err := c.f.decode(strings.NewReader(c.in))
		require.ErrorIs(t, err, c.want, name)
		require.Empty(t, id, name)
	}
}

// TestFramingRoundTrip: what encode takes, decode gives back, and leaves the
// stream's first bytes alone.
func TestFramingRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom([]Framing{FramingU32, FramingString}).Draw(t, "framing")
		id := rapid.String().Draw(t, "id")
		rest := rapid.SliceOf(rapid.Byte()).Draw(t, "rest")
		frame, err := f.encode(id)
		if err != nil {
			return
		}
		r := bytes.NewReader(append(frame, rest...))
		got, err := f.decode(iotest.OneByteReader(r))
		if err != nil || got != id || r.Len() != len(rest) {
			t.Fatalf("id %q: got %q, %v, %d bytes left, want %d", id, got, err, r.Len(), len(rest))
		}
	})
}

func fuzzDecode(f *testing.F, framing Framing) {
	for _, s := range []string{"", "\x00\x00\x00\x07", "\x00\x00\x00\x03abcd", "\xff\xff\xff\xff", "\x00\x00\x10\x00", "\x00\x00\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		id, err := framing.decode(r)
		if err != nil {
			require.Empty(t, id)
			return
		}
		frame, err := framing.encode(id)
		require.NoError(t, err)
		require.Equal(t, b[:len(b)-r.Len()], frame)
	})
}

func FuzzDecodeU32(f *testing.F)    { fuzzDecode(f, FramingU32) }
func FuzzDecodeString(f *testing.F) { fuzzDecode(f, FramingString) }

// FuzzAwaitEcho: whatever a guest answers, the host says yes only to the id.
func FuzzAwaitEcho(f *testing.F) {
	f.Add("c1", []byte("\x00\x00\x00\x02c1"), true)
	f.Add("c1", []byte("\x00\x00\x00\x06in use"), true)
	f.Add("7", []byte("\x00\x00\x00\x07"), false)
	f.Fuzz(func(t *testing.T, id string, answer []byte, text bool) {
		framing := FramingU32
		if text {
			framing = FramingString
		}
		frame, err := framing.encode(id)
		if err != nil {
			return
		}
		err = awaitEcho(bytes.NewReader(answer), framing, id)
		require.Equal(t, bytes.HasPrefix(answer, frame), err == nil)
	})
}
