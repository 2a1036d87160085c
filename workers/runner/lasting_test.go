package runner

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatIsBegunLastsAsLongAsItTakesAndForAGraceBehindAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		lasts, end := lasting(ctx)
		defer end()
		time.Sleep(10 * grace)
		if lasts.Err() != nil {
			t.Fatal("it ended by itself")
		}
		stop()
		time.Sleep(grace - time.Second)
		if lasts.Err() != nil {
			t.Fatal("it ended with the stop")
		}
		time.Sleep(2 * time.Second)
		if lasts.Err() == nil {
			t.Fatal("it did not end behind the grace")
		}
	})
}
