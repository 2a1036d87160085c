package ops

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/nats-io/nats.go"
)

// auditFamily is no route family, so that entries never mix with events.
const auditFamily = "_audit"

// A Change is one entry of the audit. It has names and never values of what was
// changed.
type Change struct {
	At        time.Time `json:"at"`
	Actor     string    `json:"actor"` // the key's public id
	ActorName string    `json:"actor_name,omitempty"`
	Action    string    `json:"action"`           // client.put, client.delete, client.lifecycle, key.create …
	Client    string    `json:"client,omitempty"` // the client that it concerns, if one
	Target    string    `json:"target,omitempty"` // what was changed, if not the client: a key's public id
	RequestID string    `json:"request_id,omitempty"`
	Details   Details   `json:"details,omitzero"`
}

// Details say more of a change.
type Details struct {
	// Revision is the one that the change was made to; 0 for something new.
	Revision uint64           `json:"revision,omitempty"`
	Before   athena.Lifecycle `json:"before,omitempty"`
	After    athena.Lifecycle `json:"after,omitempty"`
	// Fields are the paths of what differs, such as connection.dsn.
	Fields []string `json:"fields,omitempty"`
	// Failed is set in the entry that follows one whose change was not made.
	Failed athena.Code `json:"failed,omitempty"`
}

// Audit writes and reads the audit. It is safe for concurrent use.
type Audit struct {
	bus       *bus.Bus
	publisher *bus.Publisher
	log       *slog.Logger
}

// NewAudit returns the audit on b.
func NewAudit(b *bus.Bus, log *slog.Logger) *Audit {
	return &Audit{b, bus.NewPublisher(b, bus.StreamOps), log}
}

// Do writes the entry, synced, and then makes the change.
//
// The entry comes first because the other order loses entries: a process that
// dies between the two would leave a change that nobody is known to have made.
// This way it may leave an entry whose change was not made, which can be seen by
// looking. A change that fails gets a second entry with the code, as well as
// that can be done then. If the first cannot be written, Do returns
// bus_unavailable and the change is not made.
//
// Actor, request id and time are taken from ctx and the clock where c has none.
func (a *Audit) Do(ctx context.Context, c Change, change func(context.Context) error) error {
	if p := auth.FromContext(ctx); p != nil && c.Actor == "" {
		c.Actor, c.ActorName = p.Key, p.Name
	}
	c.RequestID = cmp.Or(c.RequestID, telemetry.RequestID(ctx))
	if c.At.IsZero() {
		c.At = time.Now().UTC()
	}
	if err := a.write(ctx, c); err != nil {
		return err
	}
	err := change(ctx)
	if err != nil {
		c.At, c.Details.Failed = time.Now().UTC(), athena.CodeOf(err)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
		defer cancel()
		if e := a.write(ctx, c); e != nil {
			a.log.WarnContext(ctx, "the audit does not say that a change failed", "action", c.Action, telemetry.KeyClient, c.Client, telemetry.KeyError, cause(e))
		}
	}
	return err
}

func (a *Audit) write(ctx context.Context, c Change) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	msg := nats.NewMsg(bus.Ops(cmp.Or(c.Client, nobody), auditFamily))
	msg.Data = data
	if _, err = a.publisher.Publish(ctx, msg); err != nil && ctx.Err() == nil {
		return athena.Wrap(athena.CodeBusUnavailable, err, "the change was not made, because it could not be written to the audit").RetryIn(time.Second)
	}
	return err
}

// Filter chooses entries. Empty fields choose all.
type Filter struct {
	// Clients are those that the entries concern. If it is empty, entries that
	// concern no client are among them.
	Clients []string
	Actor   string    // a key's public id
	Since   time.Time // only those written at or after
}

func (f Filter) matches(c Change) bool {
	return (len(f.Clients) == 0 || slices.Contains(f.Clients, c.Client)) && (f.Actor == "" || f.Actor == c.Actor)
}

const (
	defaultPage = 100
	mostPage    = 1000
	scanAtOnce  = 512
	firstWindow = 4096 // sequences looked through at first; the next windows grow
)

// Read returns a page of entries, newest first, and the cursor of the next page,
// which is empty after the last. The cursor of the first page is empty; limit is
// 1 to 1000, and 0 stands for 100. Entries that come meanwhile do not shift
// pages. A cursor that is none gives invalid_request.
func (a *Audit) Read(ctx context.Context, f Filter, cursor string, limit int) (page []Change, next string, err error) {
	if limit < 0 || limit > mostPage {
		return nil, "", athena.Errorf(athena.CodeInvalidRequest, "limit is %d; it must be between 1 and %d, or 0 for %d", limit, mostPage, defaultPage).At("limit")
	}
	limit = cmp.Or(limit, defaultPage)
	stream, err := a.bus.JetStream().Stream(ctx, bus.StreamOps)
	if err != nil {
		return nil, "", athena.Wrap(athena.CodeBusUnavailable, err, "the audit cannot be read now").RetryIn(time.Second)
	}
	state := stream.CachedInfo().State
	end := state.LastSeq + 1 // entries before it are wanted
	if cursor != "" {
		n, err := strconv.ParseUint(cursor, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != cursor {
			return nil, "", athena.Errorf(athena.CodeInvalidRequest, "cursor is not one that this list has given; leave it out to begin anew").At("cursor")
		}
		end = min(end, n)
	}
	page = []Change{}
	var last uint64
	for width := uint64(firstWindow); end > max(state.FirstSeq, 1); width *= 4 {
		begin := max(state.FirstSeq, 1)
		if end-begin > width {
			begin = end - width
		}
		found, older, err := a.window(ctx, f, begin, end, limit+1-len(page))
		if err != nil {
			return nil, "", err
		}
		for _, e := range slices.Backward(found) {
			if len(page) == limit {
				return page, strconv.FormatUint(last, 10), nil
			}
			page, last = append(page, e.Change), e.sequence
		}
		if older {
			break
		}
		end = begin
	}
	return page, "", nil
}

type entry struct {
	Change
	sequence uint64
}

// window returns the newest entries, at most most, of a range of sequences, in
// their order, and whether it met one from before f.Since.
func (a *Audit) window(ctx context.Context, f Filter, begin, end uint64, most int) (found []entry, older bool, err error) {
	owner := "*"
	if len(f.Clients) == 1 {
		owner = f.Clients[0]
	}
	subject := bus.Ops(owner, auditFamily)
	if owner == "*" {
		subject = "ath.ops.*." + auditFamily
	}
	for {
		raws, err := a.bus.Scan(ctx, bus.StreamOps, subject, begin, scanAtOnce)
		if err != nil {
			return nil, false, err
		}
		for _, raw := range raws {
			begin = raw.Sequence + 1
			var c Change
			switch {
			case raw.Sequence >= end:
				return found, older, nil
			case raw.Time.Before(f.Since):
				older = true
			case json.Unmarshal(raw.Data, &c) != nil:
				a.log.WarnContext(ctx, "an entry of the audit cannot be read", "sequence", raw.Sequence)
			case f.matches(c):
				if found = append(found, entry{c, raw.Sequence}); len(found) > 2*most {
					found = slices.Clone(found[len(found)-most:])
				}
			}
		}
		if len(raws) < scanAtOnce {
			return found[max(0, len(found)-most):], older, nil
		}
	}
}

// Fields lists the paths of what differs between two definitions, secrets
// included; either may be nil. Revisions are not compared.
func Fields(before, after *athena.Client) ([]string, error) {
	old, err := leaves(before)
	if err != nil {
		return nil, err
	}
	now, err := leaves(after)
	if err != nil {
		return nil, err
	}
	differ := map[string]bool{}
	for path := range maps.Keys(old) {
		differ[path] = old[path] != now[path]
	}
	for path := range maps.Keys(now) {
		differ[path] = old[path] != now[path]
	}
	maps.DeleteFunc(differ, func(path string, d bool) bool { return !d || path == "revision" })
	return slices.Sorted(maps.Keys(differ)), nil
}

// leaves gives a definition's values by path. Secrets are in clear: the result
// is compared and never leaves the package.
func leaves(c *athena.Client) (map[string]string, error) {
	all := map[string]string{}
	if c == nil {
		return all, nil
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	var tree map[string]json.RawMessage
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, err
	}
	flatten(all, "", tree)
	_, err = c.Connection.MapSecrets(func(path string, s athena.Secret) (athena.Secret, error) {
		if !s.IsZero() {
			all[path] = s.Reveal()
		}
		return s, nil
	})
	return all, err
}

func flatten(all map[string]string, prefix string, tree map[string]json.RawMessage) {
	for name, raw := range tree {
		var below map[string]json.RawMessage
		if json.Unmarshal(raw, &below) == nil && below != nil {
			flatten(all, prefix+name+".", below)
			continue
		}
		all[prefix+name] = string(raw)
	}
}
