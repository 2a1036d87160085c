package admin

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
)

// How far one List looks: in steps of deadWindow sequences, deadMost in all. A
// kind that is rare among others may need several pages, some of them empty.
const (
	deadWindow = 1000
	deadMost   = 20_000
	// deadData is how much of a message is shown.
	deadData = 64 << 10
)

// busDead is the dead letters of the bus.
type busDead struct{ bus *bus.Bus }

// NewDeadLetters reads the dead letters on b.
func NewDeadLetters(b *bus.Bus) DeadLetters { return &busDead{b} }

// List pages backwards through the stream.
func (d *busDead) List(ctx context.Context, kind, cursor string, limit int) (page []DeadLetter, next string, err error) {
	stream, err := d.bus.JetStream().Stream(ctx, bus.StreamDead)
	if err != nil {
		return nil, "", deadUnavailable(ctx, err)
	}
	first, before := stream.CachedInfo().State.FirstSeq, stream.CachedInfo().State.LastSeq+1
	if cursor != "" {
		at, err := strconv.ParseUint(cursor, 10, 64)
		if err != nil {
			return nil, "", athena.Errorf(athena.CodeInvalidRequest, "cursor is not one that this list has given").At("cursor")
		}
		before = min(before, at)
	}
	filter := "ath.dead.>"
	if kind != "" {
		filter = bus.Dead(kind, bus.Any)
	}
	page = []DeadLetter{}
	for looked := 0; before > max(first, 1) && looked < deadMost; looked += deadWindow {
		from := max(first, 1, before-min(before, deadWindow))
		raws, err := d.bus.Scan(ctx, bus.StreamDead, filter, from, int(before-from))
		if err != nil {
			return nil, "", deadUnavailable(ctx, err)
		}
		for _, raw := range slices.Backward(raws) {
			if raw.Sequence >= before {
				continue
			}
			if len(page) == limit {
				return page, strconv.FormatUint(page[limit-1].Seq, 10), nil
			}
			page = append(page, letter(raw))
		}
		before = from
	}
	if before > max(first, 1) {
		return page, strconv.FormatUint(before, 10), nil
	}
	return page, "", nil
}

func letter(raw bus.Raw) DeadLetter {
	l := DeadLetter{Seq: raw.Sequence, At: raw.Time.UTC(), Reason: raw.Header.Get(bus.HeaderCause), Size: len(raw.Data)}
	l.Kind, l.Owner, _ = bus.ParseDead(raw.Subject)
	for name, values := range raw.Header {
		if l.Headers == nil {
			l.Headers = map[string]string{}
		}
		l.Headers[name] = strings.Join(values, ", ")
	}
	switch {
	case len(raw.Data) <= deadData && json.Valid(raw.Data):
		l.Data = json.RawMessage(raw.Data)
	case len(raw.Data) > 0:
		l.Data = strings.ToValidUTF8(string(raw.Data[:min(len(raw.Data), deadData)]), "�")
	}
	return l
}

// Delete removes one message from the stream.
func (d *busDead) Delete(ctx context.Context, seq uint64) error {
	stream, err := d.bus.JetStream().Stream(ctx, bus.StreamDead)
	if err != nil {
		return deadUnavailable(ctx, err)
	}
	gone := athena.Errorf(athena.CodeNotFound, "there is no dead letter %d", seq)
	if _, err := stream.GetMsg(ctx, seq); errors.Is(err, jetstream.ErrMsgNotFound) {
		return gone
	} else if err != nil {
		return deadUnavailable(ctx, err)
	}
	if err := stream.DeleteMsg(ctx, seq); errors.Is(err, jetstream.ErrMsgNotFound) {
		return gone
	} else if err != nil {
		return deadUnavailable(ctx, err)
	}
	return nil
}

func deadUnavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "the dead letters cannot be reached now")
}
