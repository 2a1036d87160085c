package deferred

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// Headers of job messages.
const (
	// HeaderRequeue names, on a wake-up, the revision of the terminal state
	// that the job is to leave.
	HeaderRequeue = "Ath-Requeue"
	// HeaderState is the state that an event reports.
	HeaderState = "Ath-State"
)

// ErrMoved is returned by Advance if the job's state is no longer the one that
// was read.
var ErrMoved = errors.New("deferred: the job has moved on")

// Store keeps jobs on the bus. It is safe for concurrent use.
type Store struct {
	bus    *bus.Bus
	jobs   *bus.Publisher
	events *bus.Publisher
	zip    *zstd.Encoder // EncodeAll and DecodeAll alone: safe for concurrent use
	unzip  *zstd.Decoder
	packed sync.Pool // of *bytes.Buffer: segments on their way to unzip
}

// NewStore returns the store of a reconciled bus.
func NewStore(b *bus.Bus) (*Store, error) {
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, fmt.Errorf("deferred: zstd: %w", err)
	}
	unzip, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("deferred: zstd: %w", err)
	}
	return &Store{
		bus:    b,
		jobs:   bus.NewPublisher(b, bus.StreamJobs),
		events: bus.NewPublisher(b, bus.StreamJobEvents),
		zip:    zip,
		unzip:  unzip,
		packed: sync.Pool{New: func() any { return new(bytes.Buffer) }},
	}, nil
}

// Submit accepts j for good: when it returns without error the job is stored
// and synced (law 1). If its idempotency key was used before, the job that was
// accepted then is returned with replayed set, or idempotency_mismatch if that
// was another request.
func (s *Store) Submit(ctx context.Context, j *Job) (accepted *Job, replayed bool, err error) {
	body, err := json.Marshal(j)
	if err != nil {
		return nil, false, fmt.Errorf("deferred: encode job: %w", err)
	}
	if most := s.bus.Conn().MaxPayload(); int64(len(body)) > most-4096 {
		return nil, false, athena.Errorf(athena.CodePayloadTooLarge, "the query and its params take %d bytes; this deployment's bus carries at most %d", len(body), most-4096).At("query")
	}
	msg := nats.NewMsg(bus.JobSubject(string(j.Lane), string(j.Engine), j.Client, j.ID))
	msg.Data = body
	msg.Header.Set(jetstream.MsgTTLHeader, j.keep())
	if j.Digest != "" {
		msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
		msg.Header.Set(jetstream.ExpectedLastSubjSeqSubjHeader, bus.JobAny(j.Client, j.ID))
	}
	crashpoint.Here(crashpoint.SubmitReceived)
	_, err = s.jobs.Publish(ctx, msg)
	switch {
	case err == nil:
		crashpoint.Here(crashpoint.SubmitStored)
		return j, false, nil
	case errors.Is(err, bus.ErrWrongSequence):
		return s.replay(ctx, j)
	case errors.Is(err, bus.ErrFull):
		return nil, false, athena.Wrap(athena.CodeTooManyRequests, err, "the job stream is full; nothing was accepted").RetryIn(5 * time.Second)
	}
	return nil, false, athena.Wrap(athena.CodeBusUnavailable, err, "the job could not be stored, or it is not known whether it was; send it again with an Idempotency-Key").
		With("id", j.ID).RetryIn(time.Second)
}

func (s *Store) replay(ctx context.Context, j *Job) (*Job, bool, error) {
	old, _, err := s.Load(ctx, j.Client, j.ID)
	if err != nil {
		return nil, false, err
	}
	if old.Digest != j.Digest {
		return nil, false, athena.Errorf(athena.CodeIdempotencyMismatch, "this Idempotency-Key was used for another request; use a new one").With("id", old.ID)
	}
	return old, true, nil
}

// Load returns a job and where it stands, or not_found. The client may be empty
// if it is not known; then the look-up costs more.
func (s *Store) Load(ctx context.Context, client, id string) (*Job, Status, error) {
	if err := CheckID(id); err != nil {
		return nil, Status{}, err
	}
	if client == "" {
		client = "*"
	}
	raw, err := s.bus.LastMsg(ctx, bus.StreamJobs, bus.JobAny(client, id))
	if err != nil {
		return nil, Status{}, lookup(err, id)
	}
	var j Job
	if err := json.Unmarshal(raw.Data, &j); err != nil {
		return nil, Status{}, fmt.Errorf("deferred: job %s: %w", id, err)
	}
	st, err := s.Status(ctx, j.Client, id)
	return &j, st, err
}

// Status returns the last snapshot of a job; the zero Status if none has been
// written.
func (s *Store) Status(ctx context.Context, client, id string) (Status, error) {
	raw, err := s.bus.LastMsg(ctx, bus.StreamJobEvents, bus.JobEvent(client, id))
	if errors.Is(err, bus.ErrNoMessage) {
		return Status{}, nil
	}
	if err != nil {
		return Status{}, lookup(err, id)
	}
	return decodeStatus(raw.Data, raw.Sequence)
}

// DecodeJob reads the body of a job's message; false if it is that of a wake-up.
func DecodeJob(body []byte) (*Job, bool) {
	var j Job
	if len(body) == 0 || body[0] != '{' || json.Unmarshal(body, &j) != nil {
		return nil, false
	}
	return &j, true
}

func decodeStatus(data []byte, seq uint64) (Status, error) {
	var st Status
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("deferred: event %d: %w", seq, err)
	}
	st.Rev = seq
	return st, nil
}

func lookup(err error, id string) error {
	if errors.Is(err, bus.ErrNoMessage) {
		return athena.Errorf(athena.CodeNotFound, "there is no job %q; it may have been forgotten after its time", id)
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "the state of job %q cannot be read now", id).RetryIn(time.Second)
}

// Advance takes the job through steps, if its state still is from (law 2), and
// returns the last with its revision; ErrMoved if it is not. Several steps cost
// little more than one. A terminal state of a job with a webhook and the order to
// deliver it are stored together or not at all.
func (s *Store) Advance(ctx context.Context, j *Job, from Status, steps ...Status) (Status, error) {
	msgs := make([]*nats.Msg, 0, len(steps)+1)
	at := from.State
	for _, to := range steps {
		if !CanFollow(at, to.State) {
			return from, fmt.Errorf("deferred: job %s cannot go from %q to %q", j.ID, at, to.State)
		}
		at = to.State
		body, err := json.Marshal(to)
		if err != nil {
			return from, fmt.Errorf("deferred: encode status: %w", err)
		}
		msg := nats.NewMsg(bus.JobEvent(j.Client, j.ID))
		msg.Data = body
		msg.Header.Set(HeaderState, string(to.State))
		msg.Header.Set(jetstream.MsgTTLHeader, bus.TTL(time.Until(j.KeptUntil())+time.Hour)) // longer than the job
		msgs = append(msgs, msg)
	}
	msgs[0].Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(from.Rev, 10))
	last, err := steps[len(steps)-1], error(nil)
	if j.Webhook != nil && last.State.Terminal() {
		last.Rev, err = s.advanceWithHook(ctx, j, msgs)
	} else {
		last.Rev, err = s.events.PublishInOrder(ctx, msgs...)
	}
	switch {
	case err == nil:
		return last, nil
	case errors.Is(err, bus.ErrWrongSequence):
		return from, ErrMoved
	case errors.Is(err, bus.ErrAmbiguous):
		if rev, ok := s.stored(ctx, j, msgs[len(steps)-1].Data); ok {
			last.Rev = rev
			return last, nil
		}
	}
	return from, athena.Wrap(athena.CodeBusUnavailable, err, "the state of job %q could not be stored", j.ID)
}

// stored reports whether a snapshot whose acknowledgement was lost is the job's
// last one. If it is not, the next compare-and-set tells.
func (s *Store) stored(ctx context.Context, j *Job, body []byte) (uint64, bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	raw, err := s.bus.LastMsg(ctx, bus.StreamJobEvents, bus.JobEvent(j.Client, j.ID))
	if err != nil || !bytes.Equal(raw.Data, body) {
		return 0, false
	}
	return raw.Sequence, true
}

func (s *Store) advanceWithHook(ctx context.Context, j *Job, msgs []*nats.Msg) (uint64, error) {
	hook := nats.NewMsg(bus.JobHook(j.Client, j.ID))
	raw, err := json.Marshal(webhook.Hook{Client: j.Client, Job: j.ID, URL: j.Webhook.URL, Key: j.Principal.Key, Created: time.Now().UTC()})
	if err != nil {
		return 0, fmt.Errorf("deferred: encode hook: %w", err)
	}
	hook.Data = raw
	hook.Header.Set(jetstream.MsgTTLHeader, bus.TTL(7*24*time.Hour)) // given up before
	last, err := s.events.PublishAtomic(ctx, append(msgs, hook))
	return last - 1, err
}

// Wake has the job's message delivered to a worker again at the given time, cut
// to whole seconds upwards; now, if the time has come. A later Wake replaces one
// that has not fired.
func (s *Store) Wake(ctx context.Context, j *Job, at time.Time) error {
	target := bus.JobWake(string(j.Lane), string(j.Engine), j.Client, j.ID)
	msg := nats.NewMsg(target)
	if time.Until(at) > 0 {
		msg = bus.Schedule(bus.JobSchedule(j.Client, j.ID), target, at)
		msg.Header.Set(jetstream.ScheduleTTLHeader, j.keep())
	}
	return s.wake(ctx, j, msg)
}

func (s *Store) wake(ctx context.Context, j *Job, msg *nats.Msg) error {
	msg.Data = []byte(j.ID)
	msg.Header.Set(jetstream.MsgTTLHeader, j.keep())
	if _, err := s.jobs.Publish(ctx, msg); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "the wake-up of job %q could not be stored", j.ID)
	}
	return nil
}

// Requeue asks for a terminal job to be run again. The wake-up is stored first:
// once Requeue returns, the job runs again even if nothing else was written.
func (s *Store) Requeue(ctx context.Context, j *Job, st Status, now time.Time) (Status, error) {
	if !st.State.Terminal() {
		return st, athena.Errorf(athena.CodeConflict, "job %q is %s; only one that has ended can be requeued", j.ID, st.State).With("state", st.State)
	}
	msg := nats.NewMsg(bus.JobWake(string(j.Lane), string(j.Engine), j.Client, j.ID))
	msg.Header.Set(HeaderRequeue, strconv.FormatUint(st.Rev, 10))
	if err := s.wake(ctx, j, msg); err != nil {
		return st, err
	}
	next, err := s.Advance(ctx, j, st, j.Requeued(st, now))
	if errors.Is(err, ErrMoved) { // a worker was faster
		return s.Status(ctx, j.Client, j.ID)
	}
	return next, err
}

// Cancel asks for a job to be cancelled and returns where it stands then: ended
// already, cancelled, or cancelling if a worker has to reach the backend. It
// conflicts with a job that has ended otherwise.
func (s *Store) Cancel(ctx context.Context, j *Job, now time.Time) (Status, error) {
	for range 20 {
		st, err := s.Status(ctx, j.Client, j.ID)
		if err != nil {
			return st, err
		}
		switch {
		case st.State == Cancelled, st.State == Cancelling:
			return st, nil
		case st.State.Terminal():
			return st, athena.Errorf(athena.CodeConflict, "job %q has ended as %s", j.ID, st.State).With("state", st.State)
		}
		next, err := s.Advance(ctx, j, st, st.Cancel(now))
		if errors.Is(err, ErrMoved) {
			continue
		}
		if err == nil && next.State == Cancelling {
			// A hint, for speed: a worker that misses it reads the state.
			s.bus.Conn().Publish(bus.CancelHint(j.ID), nil)
		}
		return next, err
	}
	return Status{}, athena.Errorf(athena.CodeConflict, "job %q changes too fast to be cancelled; try again", j.ID)
}

// Forget removes a job that has ended, with its events and its result.
func (s *Store) Forget(ctx context.Context, j *Job, st State) error {
	if !st.Terminal() {
		return athena.Errorf(athena.CodeConflict, "job %q is %s; cancel it first", j.ID, st).With("state", st)
	}
	// The acceptance goes first: without its events it would read as one of a job
	// that never ran.
	for _, part := range []struct {
		stream  string
		filters []string
	}{
		{bus.StreamJobs, []string{bus.JobAny(j.Client, j.ID), bus.JobWakeAny(j.Client, j.ID), bus.JobSchedule(j.Client, j.ID)}},
		{bus.StreamJobEvents, []string{bus.JobEvent(j.Client, j.ID), bus.JobHook(j.Client, j.ID), bus.JobHookWake(j.Client, j.ID), bus.JobHookSchedule(j.Client, j.ID) + ".>"}},
		{bus.StreamResults, []string{bus.ResultAny(j.Client, j.ID)}},
	} {
		str, err := s.bus.JetStream().Stream(ctx, part.stream)
		for i := 0; err == nil && i < len(part.filters); i++ {
			err = str.Purge(ctx, jetstream.WithPurgeSubject(part.filters[i]))
		}
		if err != nil {
			return athena.Wrap(athena.CodeBusUnavailable, err, "job %q could not be removed from %s", j.ID, part.stream).RetryIn(time.Second)
		}
	}
	return nil
}

// Events yields the job's snapshots with a revision above after, those there
// are and those that come, until ctx is done or the loop is left.
func (s *Store) Events(ctx context.Context, j *Job, after uint64) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		cfg := jetstream.OrderedConsumerConfig{
			FilterSubjects:    []string{bus.JobEvent(j.Client, j.ID)},
			DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:       after + 1,
			InactiveThreshold: 10 * time.Second,
		}
		cons, err := s.bus.JetStream().OrderedConsumer(ctx, bus.StreamJobEvents, cfg)
		if err != nil {
			yield(Status{}, lookup(err, j.ID))
			return
		}
		msgs, err := cons.Messages()
		if err != nil {
			yield(Status{}, lookup(err, j.ID))
			return
		}
		defer msgs.Stop()
		defer context.AfterFunc(ctx, msgs.Stop)()
		for {
			msg, err := msgs.Next()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(Status{}, lookup(err, j.ID))
				return
			}
			meta, err := msg.Metadata()
			if err != nil {
				yield(Status{}, err)
				return
			}
			st, err := decodeStatus(msg.Data(), meta.Sequence.Stream)
			if !yield(st, err) || err != nil {
				return
			}
		}
	}
}

// Await returns the job's state as soon as it satisfies done, or as it is when
// ctx is done.
func (s *Store) Await(ctx context.Context, j *Job, st Status, done func(Status) bool) (Status, error) {
	if done(st) {
		return st, nil
	}
	for next, err := range s.Events(ctx, j, st.Rev) {
		if err != nil {
			return st, err
		}
		if st = next; done(st) {
			break
		}
	}
	return st, nil
}

// Lanes returns the consumers of a client's lanes, highest first, made or brought
// up to date. An attempt whose worker is silent for ackWait is given to another.
func (s *Store) Lanes(ctx context.Context, client string, maxRunning int, ackWait time.Duration) ([]jetstream.Consumer, error) {
	lanes := make([]jetstream.Consumer, 0, len(Lanes()))
	for _, lane := range Lanes() {
		cons, err := s.bus.JetStream().CreateOrUpdateConsumer(ctx, bus.StreamJobs, laneConfig(lane, client, maxRunning, ackWait))
		if err != nil {
			return nil, athena.Wrap(athena.CodeBusUnavailable, err, "the queue of client %q cannot be made", client)
		}
		lanes = append(lanes, cons)
	}
	return lanes, nil
}

func laneConfig(lane Lane, client string, maxRunning int, ackWait time.Duration) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       bus.LaneConsumer(string(lane), client),
		FilterSubject: bus.JobLane(string(lane), client),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1,
		MaxAckPending: maxRunning,
	}
}

// Dead puts a job that was given up into the dead letters, without its params,
// which may hold secrets and be as large as a message.
func (s *Store) Dead(ctx context.Context, j *Job, st Status) error {
	bare := *j
	bare.Params = nil
	body, err := json.Marshal(struct {
		Kind   string  `json:"kind"`
		Job    *Job    `json:"job"`
		Status *Status `json:"status"`
	}{"job", &bare, &st})
	if err != nil {
		return fmt.Errorf("deferred: encode dead letter: %w", err)
	}
	if _, err := s.bus.JetStream().Publish(ctx, bus.Dead("job", j.Client), body); err != nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "the dead letter of job %q could not be stored", j.ID)
	}
	return nil
}

// MayRead reports whether p may see the job; not_found if not, as if it were
// not there.
func MayRead(p *auth.Principal, j *Job) error {
	if !p.MayActAs(j.Client) {
		return athena.Errorf(athena.CodeNotFound, "there is no job %q; it may have been forgotten after its time", j.ID)
	}
	return nil
}

// keep is the time to live of a message that is of use as long as the job.
func (j *Job) keep() string { return bus.TTL(time.Until(j.KeptUntil())) }
