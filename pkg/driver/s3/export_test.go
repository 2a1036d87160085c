package s3

import (
	"context"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Limits are limits, with zero fields for the defaults.
type Limits struct {
	Part, CopyWhole, CopyPart int64
	Silence, Patience         time.Duration
}

// OpenWith is Open with other limits.
func OpenWith(ctx context.Context, conn athena.S3Conn, l Limits) (*Backend, error) {
	d := defaults()
	or(&d.part, l.Part)
	or(&d.copyWhole, l.CopyWhole)
	or(&d.copyPart, l.CopyPart)
	or(&d.silence, l.Silence)
	or(&d.patience, l.Patience)
	return open(ctx, conn, d)
}

func or[T comparable](to *T, value T) {
	var zero T
	if value != zero {
		*to = value
	}
}

// PartSize is partSize.
var PartSize = partSize
