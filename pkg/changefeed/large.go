package changefeed

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
)

// SnapshotProgress lists how far the snapshots are of which a client's stream
// still tells; none if there is no stream.
func (s *Store) SnapshotProgress(ctx context.Context, client string) ([]SnapshotProgress, error) {
	if info, err := s.streamInfo(ctx, client); err != nil || info == nil {
		return nil, err
	}
	found, err := s.Progress(ctx, client)
	return slices.Collect(maps.Values(found)), err
}

// An Object is a value that was too large for a message. It must be closed.
type Object struct {
	io.ReadCloser
	Size uint64
	// Digest is that of its bytes, as "SHA-256=" and base64url.
	Digest string
}

// Object opens a value by the name that its change has for it; a not_found error
// if there is none, or no longer.
func (s *Store) Object(ctx context.Context, client, name string) (*Object, error) {
	missing := athena.Errorf(athena.CodeNotFound, "client %q has no value %.200q; values are kept as long as their changes", client, name)
	store, err := s.bus.JetStream().ObjectStore(ctx, bus.CDCObjects(client))
	if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, missing
	}
	if err != nil {
		return nil, unreadable(client, err)
	}
	o, err := store.Get(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) || errors.Is(err, jetstream.ErrNameRequired) {
		return nil, missing
	}
	if err != nil {
		return nil, unreadable(client, err)
	}
	info, err := o.Info()
	if err != nil {
		o.Close()
		return nil, unreadable(client, err)
	}
	return &Object{o, info.Size, info.Digest}, nil
}
