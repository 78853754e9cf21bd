package nsexec

import (
	"math/bits"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestParseList(t *testing.T) {
	for list, want := range map[string][]uint64{
		"0":           {1},
		"0-3,7":       {0x8f},
		" 1 , 2 - 3,": {0xe},
		"63,64":       {1 << 63, 1},
		"130":         {0, 0, 4},
		"5,5,4-6":     {0x70},
	} {
		got, err := parseList(list, 1024)
		require.NoError(t, err, list)
		require.Equal(t, want, got, list)
	}
	for _, list := range []string{"", " , ", "a", "3-1", "1-", "-1", "1-2-3", "0x1", "1:2", "1024", "0-99999999999999999999", "0-4294967295", strings.Repeat("0-1023,", 10000)} {
		got, err := parseList(list, 1024)
		require.ErrorIs(t, err, sys.ErrInvalid, list)
		require.Nil(t, got)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("0-3,7")
	f.Add(" 1 , 2 - 3,")
	f.Fuzz(func(t *testing.T, list string) {
		mask, err := parseList(list, 1024)
		if (mask == nil) != (err != nil) {
			t.Fatalf("%v and %v", mask, err)
		}
		set := 0
		for _, w := range mask {
			set += bits.OnesCount64(w)
		}
		if err == nil && (set == 0 || set > 1024 || len(mask) > 16) {
			t.Errorf("%q has %d numbers", list, set)
		}
		if err == nil && strings.Trim(list, "0123456789-, \t\n\v\f\r\u0085\u00a0") != "" {
			t.Logf("%q", list)
		}
	})
}
