package vmtest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestapi "vminit/api/services/guest/v1"
)

// ahead is how far the guest's clock is ahead of the host's.
func (g *Guest) ahead(ctx context.Context, t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	r, err := g.API.Timeline(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	return r.Now.AsTime().Sub(began.Add(time.Since(began) / 2))
}

// TestClock: a guest that was stopped catches up with the host by itself, and
// keeps the difference from the host's clock that SetTime has made.
func TestClock(t *testing.T) {
	g := Boot(t, nil)
	ctx := Context(t)
	g.Running(ctx, t, Spec("/bin/sleep", "1000")) // boot is over
	require.InDelta(t, 0, g.ahead(ctx, t).Seconds(), 3)

	_, err := g.API.SetTime(ctx, &guestapi.SetTimeRequest{Time: timestamppb.New(time.Now().Add(time.Hour))})
	require.NoError(t, err)
	require.InDelta(t, 3600, g.ahead(ctx, t).Seconds(), 3)

	const pause = 6 * time.Second
	time.Sleep(time.Second) // the guest notes what SetTime has done
	g.qmp(ctx, t, "stop", nil, nil)
	stopped, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	_, err = g.API.Timeline(stopped, &emptypb.Empty{})
	require.Error(t, err, "it was not stopped")
	g.qmp(ctx, t, "cont", nil, nil)
	require.Eventually(t, func() bool {
		ahead := g.ahead(ctx, t).Seconds()
		return ahead > 3597 && ahead < 3603
	}, 40*time.Second, time.Second)
}
