package capture

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// largeValues puts values that are too large for a message into the client's
// object store, so that they never stop a stream.
type largeValues struct {
	js       jetstream.JetStream
	client   string
	maxAge   time.Duration // as long as the stream keeps the change
	replicas int
	store    jetstream.ObjectStore // made when it is needed
}

// shrink returns c with its largest values replaced by references, so that its
// envelope has at least over bytes less. The values are stored before it returns.
func (l *largeValues) shrink(ctx context.Context, c *cdc.Change, over int) (*cdc.Change, error) {
	small := *c
	if len(small.Content) > 0 { // a logical message
		raw, err := l.put(ctx, c.Pos, "content", small.Content)
		if err != nil {
			return nil, err
		}
		over -= base64.StdEncoding.EncodedLen(len(small.Content))
		small.Content, small.After = nil, append(append([]byte(`{"content":`), raw...), '}')
		over += len(small.After) + len(`,"after":`)
	}
	for _, part := range []struct {
		name string
		row  *json.RawMessage
	}{{"after", &small.After}, {"before", &small.Before}} {
		for over > 0 && c.Op != cdc.Message {
			row, saved, err := l.replaceLargest(ctx, c.Pos, part.name, *part.row)
			if err != nil {
				return nil, err
			}
			if saved <= 0 {
				break
			}
			*part.row = row
			over -= saved
		}
	}
	if over > 0 {
		return nil, fmt.Errorf("capture: the change at %s of %s.%s has more columns than one message holds", c.Pos, c.Schema, c.Table)
	}
	return &small, nil
}

// replaceLargest replaces the largest value of a row.
func (l *largeValues) replaceLargest(ctx context.Context, pos cdc.Position, part string, row json.RawMessage) (json.RawMessage, int, error) {
	if row == nil {
		return row, 0, nil
	}
	dec := json.NewDecoder(bytes.NewReader(row))
	if _, err := dec.Token(); err != nil {
		return nil, 0, err
	}
	var column string
	var value json.RawMessage
	var from, to int64
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, 0, err
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, 0, err
		}
		if len(v) > len(value) {
			column, value, to = name.(string), v, dec.InputOffset()
			from = to - int64(len(v))
		}
	}
	ref, err := l.put(ctx, pos, part+"."+column, value)
	if err != nil || len(ref) >= len(value) {
		return row, 0, err
	}
	out := make(json.RawMessage, 0, len(row)-len(value)+len(ref))
	out = append(append(append(out, row[:from]...), ref...), row[to:]...)
	return out, len(value) - len(ref), nil
}

// put stores one value, under a name that is the same after a replay, and
// returns what stands for it.
func (l *largeValues) put(ctx context.Context, pos cdc.Position, what string, value []byte) (json.RawMessage, error) {
	if l.store == nil {
		s, err := l.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{
			Bucket: bus.CDCObjects(l.client), Description: "Large values of changes of client " + l.client,
			TTL: l.maxAge, Storage: jetstream.FileStorage, Replicas: max(1, l.replicas), Compression: true,
		})
		if err != nil {
			return nil, errors.Join(errLarge, err)
		}
		l.store = s
	}
	name := string(pos) + "." + what
	if _, err := l.store.PutBytes(ctx, name, value); err != nil {
		return nil, errors.Join(errLarge, err)
	}
	sum := sha256.Sum256(value)
	return json.Marshal(map[string]any{"$ref": name, "sha256": hex.EncodeToString(sum[:]), "bytes": len(value)})
}

var errLarge = errors.New("capture: a large value could not be stored")
