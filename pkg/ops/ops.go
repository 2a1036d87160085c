// Package ops keeps what was done: the operation log, one small event for each
// operation that took the road, and the audit, one entry for each change of
// definitions and keys. Both are on the stream ATH_OPS, which holds a week or
// its size, whichever ends first.
//
// The two promise different things. The operation log never slows the road: it
// is written behind it, and what the bus cannot take in time is dropped and
// counted. The audit is written before the change that it tells of, and a change
// that cannot be audited is not made.
//
// The package knows of operations and changes, and not how either is done.
package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
)

const (
	flushEvery  = 250 * time.Millisecond
	flushEvents = 512
	flushLimit  = 3 * time.Second // longest that one flush may take
	mostWaiting = 8192            // events in memory; more are dropped
	mostMessage = 256 << 10       // bytes of one message
	nobody      = "_"             // owner of what belongs to no client that exists
	mostName    = 64              // bytes kept of a name that is no client's
)

// An Event is one operation. A message of the stream holds one or more, of one
// owner and family, each on a line of its own.
type Event struct {
	Time      time.Time     `json:"time"` // when it began
	RequestID string        `json:"request_id,omitempty"`
	Client    string        `json:"client,omitempty"` // as it was asked for
	Engine    athena.Engine `json:"engine,omitempty"` // empty if there is no such client
	Family    string        `json:"family"`
	Principal string        `json:"principal,omitempty"` // the key's public id; empty for a stranger
	Code      athena.Code   `json:"code,omitempty"`      // empty on success
	Elapsed   float64       `json:"elapsed_ms"`
}

// subject keeps names that callers make up out of the stream's subjects.
func (e Event) subject() string {
	if e.Engine == "" {
		return bus.Ops(nobody, e.Family)
	}
	return bus.Ops(e.Client, e.Family)
}

// Recorder writes the operation log in the background: every 250 ms, or when
// 512 events wait. It is best effort: a crash loses what was not yet written, at
// most 250 ms while the bus keeps up; when it does not, or refuses, events are
// dropped and counted. Record is safe for concurrent use.
type Recorder struct {
	publisher *bus.Publisher
	metrics   *telemetry.Metrics
	log       *slog.Logger
	full      chan struct{} // holds a token when flushEvents wait

	mu      sync.Mutex
	waiting []Event
}

// NewRecorder returns a recorder, which records nothing to the bus before Run.
// metrics may be nil.
func NewRecorder(b *bus.Bus, metrics *telemetry.Metrics, log *slog.Logger) *Recorder {
	return &Recorder{publisher: bus.NewPublisher(b, bus.StreamOps), metrics: metrics, log: log, full: make(chan struct{}, 1)}
}

// Record takes an event and returns at once.
func (r *Recorder) Record(e Event) {
	if len(e.Client) > mostName {
		e.Client = e.Client[:mostName]
	}
	r.mu.Lock()
	n := len(r.waiting)
	if n < mostWaiting {
		r.waiting = append(r.waiting, e)
	}
	r.mu.Unlock()
	switch {
	case n >= mostWaiting:
		r.metrics.OpsDropped(1)
	case n >= flushEvents-1:
		select {
		case r.full <- struct{}{}:
		default:
		}
	}
}

// Run writes events until ctx is done, and then once more what waits. It
// returns nil.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	last := context.WithoutCancel(ctx)
	for {
		select {
		case <-ctx.Done():
			r.flush(last)
			return nil
		case <-tick.C:
		case <-r.full:
		}
		r.flush(last)
	}
}

// flush writes all that waits. One message is lost alone: the next ones may
// still be taken.
func (r *Recorder) flush(ctx context.Context) {
	r.mu.Lock()
	events := r.waiting
	r.waiting = nil
	r.mu.Unlock()
	if len(events) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushLimit)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(64)
	var failed sync.Once
	start := time.Now()
	for _, p := range pack(events) {
		g.Go(func() error {
			if _, err := r.publisher.Publish(ctx, p.msg); err != nil {
				r.metrics.OpsDropped(p.events)
				failed.Do(func() {
					r.log.Warn("events of the operation log were dropped", telemetry.KeyError, cause(err))
				})
			}
			return nil
		})
	}
	_ = g.Wait() // no member returns an error
	r.metrics.Published(bus.StreamOps, time.Since(start))
}

type packed struct {
	msg    *nats.Msg
	events int
}

// pack puts events of one subject into as few messages as fit, in order.
func pack(events []Event) []*packed {
	var all []*packed
	open := map[string]*packed{}
	for _, e := range events {
		line, err := json.Marshal(e)
		if err != nil {
			continue // an Event holds nothing that JSON cannot
		}
		subject := e.subject()
		p := open[subject]
		if p == nil || len(p.msg.Data)+len(line)+1 > mostMessage {
			p = &packed{msg: nats.NewMsg(subject)}
			open[subject] = p
			all = append(all, p)
		}
		p.msg.Data = append(append(p.msg.Data, line...), '\n')
		p.events++
	}
	return all
}

// Decode reads the events of a message of the operation log.
func Decode(data []byte) ([]Event, error) {
	var list []Event
	for line := range bytes.Lines(data) {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("ops: event %d: %w", len(list)+1, err)
		}
		list = append(list, e)
	}
	return list, nil
}

// Observer tells metrics, log and operation log of every operation on the road.
type Observer struct {
	metrics  *telemetry.Metrics
	log      *slog.Logger
	recorder *Recorder
}

var _ dispatch.Observer = (*Observer)(nil)

// NewObserver returns an observer. metrics and recorder may be nil.
func NewObserver(metrics *telemetry.Metrics, log *slog.Logger, recorder *Recorder) *Observer {
	return &Observer{metrics, log, recorder}
}

// Observe counts, logs and records. Successes and callers' mistakes are debug
// lines; what the server or a backend is to blame for is a warning, with the
// cause that callers are not shown.
func (o *Observer) Observe(ctx context.Context, out dispatch.Outcome) {
	o.metrics.Operation(out.Client, string(out.Engine), out.Op.Family, string(out.Code), out.Elapsed)

	level := slog.LevelDebug
	attrs := []slog.Attr{
		slog.String(telemetry.KeyClient, out.Client), slog.String(telemetry.KeyEngine, string(out.Engine)),
		slog.String(telemetry.KeyFamily, out.Op.Family), slog.String(telemetry.KeyCode, string(out.Code)),
		slog.String(telemetry.KeyKey, out.Principal), slog.Float64(telemetry.KeyElapsed, milliseconds(out.Elapsed)),
	}
	if blamed(out.Code) {
		level = slog.LevelWarn
	}
	if out.Err != nil && o.log.Enabled(ctx, level) {
		attrs = append(attrs, slog.String(telemetry.KeyError, cause(out.Err)))
	}
	o.log.LogAttrs(ctx, level, "operation", attrs...)

	if o.recorder != nil {
		o.recorder.Record(Event{
			Time: out.Started.UTC(), RequestID: telemetry.RequestID(ctx), Client: out.Client, Engine: out.Engine,
			Family: out.Op.Family, Principal: out.Principal, Code: out.Code, Elapsed: milliseconds(out.Elapsed),
		})
	}
}

// blamed reports whether the server or a backend, not the caller, is to blame.
func blamed(code athena.Code) bool {
	switch code {
	case athena.CodeInternal, athena.CodeBackendUnavailable, athena.CodeBusUnavailable, athena.CodeTimeout:
		return true
	}
	return false
}

// cause is the whole of an error, with what an athena.Error hides from callers.
func cause(err error) string {
	var own *athena.Error
	if errors.As(err, &own) && own.Unwrap() != nil {
		return err.Error() + ": " + cause(own.Unwrap())
	}
	return err.Error()
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
