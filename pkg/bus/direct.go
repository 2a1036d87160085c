package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// ErrNoMessage is returned if a stream holds no message of the subject.
var ErrNoMessage = errors.New("bus: no such message")

// Raw is a message as it is stored.
type Raw struct {
	Subject  string
	Sequence uint64
	Time     time.Time
	Header   nats.Header
	Data     []byte
}

const (
	readTimeout = 10 * time.Second
	// The server answers for at most 1,024 subjects at once.
	lastForMost = 1000
	// How many bytes of messages are asked for at once.
	readBytes = 4 << 20
)

// A getRequest is the body of a direct get, see ADR-31 of NATS.
type getRequest struct {
	Seq       uint64   `json:"seq,omitempty"`
	LastFor   string   `json:"last_by_subj,omitempty"`
	NextFor   string   `json:"next_by_subj,omitempty"`
	MultiLast []string `json:"multi_last,omitempty"`
	Batch     int      `json:"batch,omitempty"`
	MaxBytes  int      `json:"max_bytes,omitempty"`
	UpToSeq   uint64   `json:"up_to_seq,omitempty"`
	// StartTime stands in place of Seq.
	StartTime *time.Time `json:"start_time,omitempty"`
}

// LastMsg returns the last message of a subject, which may hold wildcards, or
// ErrNoMessage. It sees every write that was acknowledged before it was called.
func (b *Bus) LastMsg(ctx context.Context, stream, subject string) (*Raw, error) {
	return b.one(ctx, stream, getRequest{LastFor: subject})
}

// MsgFrom returns the first message that there is from a sequence on, or
// ErrNoMessage. It sees every write that was acknowledged before it was called.
func (b *Bus) MsgFrom(ctx context.Context, stream string, seq uint64) (*Raw, error) {
	return b.one(ctx, stream, getRequest{Seq: max(seq, 1), NextFor: ">"})
}

// FirstSince returns the first message that was stored at a time or later, or
// ErrNoMessage. It sees every write that was acknowledged before it was called.
func (b *Bus) FirstSince(ctx context.Context, stream string, at time.Time) (*Raw, error) {
	return b.one(ctx, stream, getRequest{StartTime: &at, NextFor: ">"})
}

// one asks for one message.
func (b *Bus) one(ctx context.Context, stream string, req getRequest) (*Raw, error) {
	if b.cfg.Replicas > 1 {
		// Direct gets are answered by any replica, which may lag behind.
		return b.leaderOne(ctx, stream, req)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	msg, err := b.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+stream, body)
	if err != nil {
		return nil, unread(stream, err)
	}
	raw, end, err := parseDirect(stream, msg)
	if err == nil && end {
		err = ErrNoMessage
	}
	return raw, err
}

func (b *Bus) leaderOne(ctx context.Context, stream string, req getRequest) (*Raw, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	msg, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, body)
	if err != nil {
		return nil, unread(stream, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return nil, unread(stream, err)
	}
	switch m := answer.Message; {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, ErrNoMessage
	case answer.Error != nil:
		return nil, unread(stream, answer.Error)
	case m == nil:
		return nil, unread(stream, errors.New("an answer without a message"))
	default:
		raw := &Raw{Subject: m.Subject, Sequence: m.Seq, Time: m.Time, Data: m.Data}
		if len(m.Header) > 0 {
			if raw.Header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
				return nil, unread(stream, err)
			}
		}
		return raw, nil
	}
}

// LastFor returns the last message of each subject that has one, by subject.
// With replicas it may lag behind writes by milliseconds.
func (b *Bus) LastFor(ctx context.Context, stream string, subjects []string) (map[string]Raw, error) {
	out := make(map[string]Raw, len(subjects))
	for len(subjects) > 0 {
		n := min(len(subjects), lastForMost)
		req := getRequest{MultiLast: subjects[:n], MaxBytes: readBytes}
		for more := true; more; {
			var last uint64
			pending, upTo, err := b.direct(ctx, stream, req, func(r Raw) {
				out[r.Subject] = r
				last = r.Sequence
			})
			if err != nil {
				return nil, err
			}
			// What was cut off stands behind the last one that came, in the stream
			// as it was at the first request.
			more = pending > 0 && last > 0
			req.Seq, req.UpToSeq = last+1, upTo
		}
		subjects = subjects[n:]
	}
	return out, nil
}

// LastOf is LastFor of all subjects that match a filter. It sees every write that
// was acknowledged before it was called.
func (b *Bus) LastOf(ctx context.Context, stream, filter string) (map[string]Raw, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		newest, err := b.LastMsg(ctx, stream, filter)
		if errors.Is(err, ErrNoMessage) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		// A replica has everything up to the newest message that it has.
		out, err := b.LastFor(ctx, stream, []string{filter})
		if err != nil {
			return nil, err
		}
		for _, r := range out {
			if r.Sequence >= newest.Sequence {
				return out, nil
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, unread(stream, ctx.Err())
		}
	}
}

// Scan returns up to most messages from a sequence on whose subject matches the
// filter, in order. With replicas it may lag behind writes by milliseconds.
func (b *Bus) Scan(ctx context.Context, stream, filter string, from uint64, most int) ([]Raw, error) {
	var out []Raw
	from = max(from, 1)
	for len(out) < most {
		req := getRequest{Seq: from, NextFor: filter, Batch: most - len(out), MaxBytes: readBytes}
		before := len(out)
		pending, _, err := b.direct(ctx, stream, req, func(r Raw) { out = append(out, r) })
		if err != nil {
			return nil, err
		}
		if pending == 0 || len(out) == before {
			break
		}
		from = out[len(out)-1].Sequence + 1
	}
	return out, nil
}

// Count counts the messages whose subject matches the filter, without reading them.
// With replicas it may lag behind writes by milliseconds.
func (b *Bus) Count(ctx context.Context, stream, filter string) (int64, error) {
	seen := int64(0)
	pending, _, err := b.direct(ctx, stream, getRequest{Seq: 1, NextFor: filter, Batch: 1}, func(Raw) { seen++ })
	return seen + int64(pending), err
}

// Read returns messages of all subjects from a sequence on, in order, in one
// request: at most most of them, and none further once they hold maxBytes; fewer
// than there are is no sign that there are no more. What has been removed is
// stepped over: the first one's sequence tells. With replicas it may lag behind
// writes by milliseconds.
func (b *Bus) Read(ctx context.Context, stream string, from uint64, most, maxBytes int) ([]Raw, error) {
	var out []Raw
	_, _, err := b.direct(ctx, stream, getRequest{Seq: max(from, 1), Batch: most, MaxBytes: maxBytes}, func(r Raw) { out = append(out, r) })
	return out, err
}

// direct sends a request that many messages answer, and returns how many more
// there are and up to which sequence they were looked for.
func (b *Bus) direct(ctx context.Context, stream string, req getRequest, yield func(Raw)) (pending, upTo uint64, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return 0, 0, unread(stream, err)
	}
	defer sub.Unsubscribe()
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return 0, 0, unread(stream, err)
	}
	if err := b.nc.PublishRequest("$JS.API.DIRECT.GET."+stream, inbox, body); err != nil {
		return 0, 0, unread(stream, err)
	}
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return 0, 0, unread(stream, err)
		}
		raw, end, err := parseDirect(stream, msg)
		if errors.Is(err, ErrNoMessage) {
			return 0, 0, nil
		}
		if err != nil {
			return 0, 0, err
		}
		if end {
			return number(msg, "Nats-Num-Pending"), number(msg, "Nats-UpTo-Sequence"), nil
		}
		yield(*raw)
	}
}

// parseDirect reads one answer; end is true if it is the mark after the last.
func parseDirect(stream string, msg *nats.Msg) (raw *Raw, end bool, err error) {
	switch status := msg.Header.Get("Status"); status {
	case "":
	case "204":
		return nil, true, nil
	case "404":
		return nil, false, ErrNoMessage
	case "503":
		return nil, false, unread(stream, nats.ErrNoResponders)
	default:
		return nil, false, unread(stream, fmt.Errorf("status %s %s", status, msg.Header.Get("Description")))
	}
	raw = &Raw{Subject: msg.Header.Get(jetstream.SubjectHeader), Sequence: number(msg, jetstream.SequenceHeader), Header: msg.Header, Data: msg.Data}
	raw.Time, err = time.Parse(time.RFC3339Nano, msg.Header.Get("Nats-Time-Stamp"))
	if err != nil || raw.Sequence == 0 {
		return nil, false, unread(stream, errors.New("an answer without a sequence or a time"))
	}
	return raw, false, nil
}

func number(msg *nats.Msg, header string) uint64 {
	n, _ := strconv.ParseUint(msg.Header.Get(header), 10, 64) // 0 if it is missing
	return n
}

func unread(stream string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "stream %s cannot be read now", stream).RetryIn(time.Second)
}
