package deferred

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
)

// Queued counts what waits in the client's lanes for a worker. A lane that no
// worker has taken from yet is made, since without it nothing is counted; the
// first worker brings its settings up to date.
func (s *Store) Queued(ctx context.Context, c *athena.Client) (int, error) {
	n := 0
	for _, lane := range Lanes() {
		cons, err := s.lane(ctx, lane, c)
		if err != nil {
			return 0, athena.Wrap(athena.CodeBusUnavailable, err, "the queue of client %q cannot be counted", c.Name).RetryIn(time.Second)
		}
		n += int(cons.CachedInfo().NumPending)
	}
	return n, nil
}

// lane returns a lane's consumer as it is, with fresh counts.
func (s *Store) lane(ctx context.Context, lane Lane, c *athena.Client) (jetstream.Consumer, error) {
	js, name := s.bus.JetStream(), bus.LaneConsumer(string(lane), c.Name)
	cons, err := js.Consumer(ctx, bus.StreamJobs, name)
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return cons, err
	}
	cons, err = js.CreateConsumer(ctx, bus.StreamJobs, laneConfig(lane, c.Name, c.Limits.WithDefaults().MaxRunning, 10*time.Second))
	if errors.Is(err, jetstream.ErrConsumerExists) { // a worker was faster
		return js.Consumer(ctx, bus.StreamJobs, name)
	}
	return cons, err
}
