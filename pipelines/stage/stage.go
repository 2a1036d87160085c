// Package stage holds the contracts between the stages of a pipeline and what
// runs them.
//
// The laws that a runner keeps, and that stages make possible:
//
//  1. Records of one key keep their order.
//  2. What the sink has committed is durable, then the checkpoint, then the
//     source hears of it. Where the sink keeps the checkpoint in its own
//     transaction the two are one step; where it stages, the decision to publish
//     and the checkpoint are one write.
//  3. A crash between any two steps repeats at most one batch, or one task, and
//     loses none; and a repetition has no effect.
//  4. Memory is bounded: batches by rows and bytes, and a slow sink slows the
//     source.
//  5. A row that cannot go on is a dead letter with its cause; the others go on.
//     Above the rate that the definition allows, the run stops.
//  6. The rows that were there come before the changes made to them.
package stage

import (
	"context"
	"encoding/json"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A Writer takes the rows of one task of a batch, or of one commit of a stream.
// It is not safe for concurrent use.
type Writer interface {
	// Write takes rows, in order. Route says where they go below the sink's own
	// place, for a definition with a route; else it is empty. Rows that the sink
	// refuses by what they hold are returned and have no effect; another error
	// ends the writer. The batch may be changed after the call.
	Write(ctx context.Context, route string, b *record.Batch) ([]record.Rejected, error)
	// Size says what has been written since the writer began, for rolling.
	Size() Size
	// Commit makes all of it take effect, with the checkpoint. A sink that stages
	// calls decide once with what is to be published, and goes on only if it
	// returns nil: by then checkpoint and list are stored, and Publish will be
	// called after a crash. A sink with transactions does not call it.
	Commit(ctx context.Context, c driver.Checkpoint, decide func(context.Context, []Object) error) error
	// Abort drops what was not committed. It may be called always, and leaves what
	// was decided alone.
	Abort(ctx context.Context)
}

// Size is how much was written.
type Size struct{ Rows, Bytes int64 }

// An Object is one that is staged, or published, with what is in it.
type Object struct {
	driver.StagedObject
	Rows int64 `json:"rows"`
	// First and Last are the positions of its changes; empty for a batch.
	First string `json:"first,omitempty"`
	Last  string `json:"last,omitempty"`
	// Schema is what its rows have; kept once for each manifest.
	Schema *record.Schema `json:"-"`
}

// A Source gives the rows of a batch.
type Source interface {
	// Describe describes its rows, as they are now.
	Describe(ctx context.Context) (*record.Schema, error)
	// Split divides it into parts that are read independently, by any worker; into
	// one if whole.
	Split(ctx context.Context, whole bool) ([]Part, error)
	// Read reads a part. Batches are good during the call of fn only. What is no
	// row is handed to reject, and reading goes on; an error of either ends it and
	// is returned.
	Read(ctx context.Context, part Part, fn func(*record.Batch) error, reject func(Unread) error) error
}

// A Part is a share of a source. It is kept as JSON.
type Part struct {
	// What says which; the source's business.
	What json.RawMessage `json:"what,omitempty"`
	// Rows and Bytes are estimated; -1 is not known.
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"`
}

// Unread is what a source gave that is no row.
type Unread struct {
	Text   string // bounded
	Reason string
	Column string
	From   string // object and line
}
