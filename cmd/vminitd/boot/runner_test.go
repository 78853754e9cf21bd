package boot

import (
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func testRunner() (*Runner, *[]string) {
	var died []string
	return &Runner{
		Timeline: new(Timeline),
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
		Fatal:    func(step string, err error) { died = append(died, step+": "+err.Error()) },
	}, &died
}

func TestRunner(t *testing.T) {
	r, died := testRunner()
	boom := errors.New("boom")
	r.Optional("works", func() error { return nil })
	r.Optional("fails", func() error { return boom })
	r.Optional("panics", func() error { panic("at the disco") })
	require.Empty(t, *died, "optional steps are not fatal")
	r.Required("needed", func() error { return nil })
	require.Empty(t, *died)
	r.Required("missing", func() error { return boom })
	require.Equal(t, []string{"missing: boom"}, *died)

	entries := r.Timeline.Entries()
	require.Len(t, entries, 5)
	require.NoError(t, entries[0].Err)
	require.Equal(t, "fails", entries[1].Name)
	require.ErrorIs(t, entries[1].Err, boom)
	require.ErrorContains(t, entries[2].Err, "at the disco")
	require.True(t, entries[4].Required)
	for i, e := range entries {
		require.LessOrEqual(t, e.Start, e.End)
		require.Positive(t, e.Start)
		if i > 0 {
			require.LessOrEqual(t, entries[i-1].Start, e.Start)
		}
	}
}

func TestTimelineConcurrent(t *testing.T) {
	var timeline Timeline
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				timeline.Mark("x")
				timeline.Entries()
			}
		})
	}
	wg.Wait()
	require.Len(t, timeline.Entries(), 800)
}
