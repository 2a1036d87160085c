package deliver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// Cause says why a hook or a batch was given up, or a subscription stopped.
type Cause string

// The causes.
const (
	AttemptsExhausted Cause = "attempts_exhausted" // the last attempt failed, or none is left in time
	EndpointDisabled  Cause = "endpoint_disabled"  // the receiver answered 410 in the last days
	TargetForbidden   Cause = "target_forbidden"   // the address is not permitted
	Superseded        Cause = "superseded"         // the job was requeued and has moved on
	JobGone           Cause = "job_gone"           // the job was forgotten
	Malformed         Cause = "malformed"          // the message cannot be read

	// Of subscriptions alone.
	KeyRevoked    Cause = "key_revoked"   // the key that made it was revoked or has expired
	ChangesLost   Cause = "changes_lost"  // what comes next is no longer kept
	FilterFailed  Cause = "filter_failed" // what it wants cannot be told
	Inexpressible Cause = "inexpressible" // a change has no form in the envelope
)

// A Letter is the body of a dead letter in ATH_DEAD.
type Letter struct {
	Kind       string    `json:"kind"` // "hook"
	Client     string    `json:"client"`
	ID         string    `json:"id"` // the job's
	WebhookID  string    `json:"webhook_id"`
	Host       string    `json:"host,omitempty"`
	Cause      Cause     `json:"cause"`
	LastStatus int       `json:"last_status,omitempty"`
	LastError  string    `json:"last_error,omitempty"`
	Attempts   int       `json:"attempts"`
	At         time.Time `json:"at"`
}

const (
	// disabledFor is how long an endpoint that answered 410 gets nothing.
	disabledFor = 7 * 24 * time.Hour
	// maxAge is how old a hook may get: the stream keeps it, and the job's
	// state, for seven days.
	maxAge        = 6 * 24 * time.Hour
	maxRetryAfter = 24 * time.Hour
	maxParked     = time.Minute
)

// DisabledKey is where ath_state says that an endpoint of a client is disabled.
func DisabledKey(client, url string) string {
	sum := sha256.Sum256([]byte(url))
	return "hook.disabled." + client + "." + hex.EncodeToString(sum[:])
}

// handle makes one attempt and stores what follows from it. An error of the bus
// leaves the message unacknowledged: it comes again.
func (r *run) handle(ctx context.Context, msg jetstream.Msg) {
	out := Outcome{Result: Returned}
	start := time.Now()
	hook, err := decode(msg)
	out.Client = hook.Client
	if err != nil {
		hook.LastError = err.Error()
		err = r.bury(ctx, hook, Malformed, &out)
	} else {
		err = r.attempt(ctx, hook, &out)
	}
	if err == nil {
		err = msg.DoubleAck(ctx) // law 1: all that had to be stored is stored
	}
	if err != nil {
		out.Result = Returned
		r.Log.Warn("a hook was returned to the bus", telemetry.KeyClient, hook.Client, telemetry.KeyJob, hook.Job, telemetry.KeyError, err)
		if err := msg.NakWithDelay(returnDelay(msg)); err != nil {
			r.Log.Debug("a hook comes again after the ack wait", telemetry.KeyJob, hook.Job, telemetry.KeyError, err)
		}
	}
	out.Elapsed = time.Since(start)
	if r.Observe != nil {
		r.Observe(out)
	}
}

// returnDelay doubles from 1 s to 1 min. It holds one of the consumer's places,
// which is right while the bus itself is ill.
func returnDelay(msg jetstream.Msg) time.Duration {
	n := uint64(1)
	if meta, err := msg.Metadata(); err == nil {
		n = meta.NumDelivered
	}
	return min(time.Second<<min(n-1, 6), time.Minute)
}

// decode reads a hook. Its revision is that of the message which ordered it
// (law 2): wake-ups carry it in their body.
func decode(msg jetstream.Msg) (*webhook.Hook, error) {
	var h webhook.Hook
	err := json.Unmarshal(msg.Data(), &h)
	if h.Revision == 0 {
		meta, merr := msg.Metadata()
		if merr != nil {
			return &h, merr
		}
		h.Revision = meta.Sequence.Stream
	}
	client, job, ok := bus.ParseJobHook(msg.Subject())
	if !ok {
		return &h, fmt.Errorf("deliver: unknown subject %s", msg.Subject())
	}
	if err == nil && (h.Client != client || h.Job != job) {
		err = errors.New("deliver: the hook names another job than its subject")
	}
	h.Client, h.Job = client, job
	return &h, err
}

func (r *run) attempt(ctx context.Context, h *webhook.Hook, out *Outcome) error {
	_, err := r.state.Get(ctx, DisabledKey(h.Client, h.URL))
	switch {
	case err == nil:
		return r.bury(ctx, h, EndpointDisabled, out)
	case !errors.Is(err, jetstream.ErrKeyNotFound):
		return err
	}
	host := host(h.URL)
	if !r.acquire(host) {
		return r.park(ctx, h, out)
	}
	defer r.release(host)
	h.Parked = 0

	sum, err := r.Jobs.Summary(ctx, h.Client, h.Job)
	switch {
	case athena.CodeOf(err) == athena.CodeNotFound:
		return r.bury(ctx, h, JobGone, out)
	case err != nil:
		return err
	case sum.Revision > h.Revision:
		return r.bury(ctx, h, Superseded, out)
	case !sum.Ended:
		return errors.New("deliver: the job's last state is not yet to be read") // by a replica that lags
	}
	body, err := h.Payload(sum)
	if err != nil {
		return err
	}
	answer, err := r.sender.Send(ctx, h.URL, h.ID(), r.Secrets.Secret(h.Key), body, time.Now())
	if ctx.Err() != nil {
		return fmt.Errorf("deliver: stopped in the middle of a request: %w", ctx.Err())
	}
	h.Attempts++
	out.Status, h.LastStatus, h.LastError = answer.Status, answer.Status, ""
	if err != nil {
		h.LastError = err.Error()
	}
	switch {
	case answer.OK():
		out.Result = Delivered
		return nil
	case errors.Is(err, webhook.ErrForbidden):
		return r.bury(ctx, h, TargetForbidden, out)
	case answer.Status == http.StatusGone:
		return r.disable(ctx, h, out)
	}
	return r.retry(ctx, h, answer, out)
}

// retry stores the next attempt, or the dead letter after the last one.
func (r *run) retry(ctx context.Context, h *webhook.Hook, answer webhook.Answer, out *Outcome) error {
	if h.Attempts > len(r.cfg.Backoff) {
		return r.bury(ctx, h, AttemptsExhausted, out)
	}
	delay := r.cfg.delay(h.Attempts, answer)
	if time.Since(h.Created)+delay > maxAge {
		return r.bury(ctx, h, AttemptsExhausted, out)
	}
	out.Result = Retried
	return r.schedule(ctx, h, delay)
}

// park lets other hosts' hooks go first; it counts as no attempt.
func (r *run) park(ctx context.Context, h *webhook.Hook, out *Outcome) error {
	delay := min(time.Second<<min(h.Parked, 6), maxParked)
	h.Parked++
	out.Result = Parked
	return r.schedule(ctx, h, jitter(delay))
}

func (r *run) schedule(ctx context.Context, h *webhook.Hook, delay time.Duration) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	// Ends of one job have schedules of their own, or one would replace the other.
	subject := bus.JobHookSchedule(h.Client, h.Job) + "." + strconv.FormatUint(h.Revision, 10)
	msg := bus.Schedule(subject, bus.JobHookWake(h.Client, h.Job), time.Now().Add(delay))
	msg.Data = body
	_, err = r.Bus.JetStream().PublishMsg(ctx, msg)
	return err
}

func (r *run) disable(ctx context.Context, h *webhook.Hook, out *Outcome) error {
	_, err := r.state.Create(ctx, DisabledKey(h.Client, h.URL), []byte(time.Now().UTC().Format(time.RFC3339)), jetstream.KeyTTL(disabledFor))
	if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return err
	}
	return r.bury(ctx, h, EndpointDisabled, out)
}

// bury stores the dead letter. One that is stored twice, since its worker was
// lost, is dropped by the stream while it remembers the message's id.
func (r *run) bury(ctx context.Context, h *webhook.Hook, cause Cause, out *Outcome) error {
	body, err := json.Marshal(Letter{
		Kind: "hook", Client: h.Client, ID: h.Job, WebhookID: h.ID(), Host: host(h.URL), Cause: cause,
		LastStatus: h.LastStatus, LastError: h.LastError, Attempts: h.Attempts, At: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	msg := nats.NewMsg(bus.Dead("hook", cmp.Or(h.Client, "_")))
	msg.Data = body
	msg.Header.Set(bus.HeaderCause, string(cause))
	msg.Header.Set(jetstream.MsgIDHeader, "hook:"+h.ID())
	if _, err := r.Bus.JetStream().PublishMsg(ctx, msg); err != nil {
		return err
	}
	out.Result, out.Cause = Dead, cause
	r.Log.Warn("a webhook was given up", telemetry.KeyClient, h.Client, telemetry.KeyJob, h.Job,
		"cause", cause, "host", host(h.URL), "attempts", h.Attempts, "last_status", h.LastStatus)
	return nil
}

// host is what requests are counted by.
func host(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Host)
}

func jitter(d time.Duration) time.Duration {
	return d + rand.N(d/10+1)
}
