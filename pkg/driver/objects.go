package driver

import (
	"context"
	"io"
	"time"
)

// Keys of objects are relative to the client's prefix. CleanKey says what a key
// is; a driver refuses others, so that no key leads out of the prefix.

// ObjectReader reads the objects of one bucket, below one prefix.
type ObjectReader interface {
	// Objects lists one page, in the order of the keys' bytes.
	Objects(ctx context.Context, l ObjectList) (ObjectPage, error)
	// Object describes one object; not_found if there is none.
	Object(ctx context.Context, key string) (Object, error)
	// ReadObject opens an object. The body must be closed. A range that begins
	// behind the object's end is an invalid_request error at the field range.
	ReadObject(ctx context.Context, key string, r ObjectRead) (ObjectBody, error)
	// PresignRead returns a URL that reads the object without credentials until
	// it expires.
	PresignRead(ctx context.Context, key string, expires time.Duration) (Presigned, error)
}

// ObjectWriter writes them.
type ObjectWriter interface {
	// WriteObject stores body under key, in parts if it is large. An object is
	// there whole or, after an error, as it was before; what was begun is
	// aborted. A condition that does not hold is a conflict error.
	WriteObject(ctx context.Context, key string, body io.Reader, w ObjectWrite) (Object, error)
	// CopyObject copies within the client's prefix; not_found if from is not
	// there.
	CopyObject(ctx context.Context, from, to string, w ObjectWrite) (Object, error)
	// DeleteObjects removes objects. What is not there is no error.
	DeleteObjects(ctx context.Context, keys ...string) error
	// PresignWrite returns a URL that stores an object without credentials until
	// it expires.
	PresignWrite(ctx context.Context, key string, expires time.Duration, w ObjectWrite) (Presigned, error)
}

// ObjectStager writes objects in two steps: staged, then published, so that the
// decision to have several objects can be stored in between. What is staged is
// nowhere to be seen.
type ObjectStager interface {
	// StageObject begins an object. Bytes are sent as they are written, in parts.
	StageObject(ctx context.Context, key string, w ObjectWrite) (ObjectStage, error)
	// PublishObject makes a staged object appear, replacing one that is there. It
	// may be called again after it has worked. If what was staged is gone and the
	// object is not there as it was staged, it is a not_found error.
	PublishObject(ctx context.Context, s StagedObject) (Object, error)
	// DiscardObject lets go of what was staged. What is not there is no error.
	DiscardObject(ctx context.Context, s StagedObject) error
	// StagedObjects lists what was staged below a prefix of keys before a time
	// and neither published nor discarded, its Parts left out; no more than a
	// thousand.
	StagedObjects(ctx context.Context, prefix string, before time.Time) ([]StagedObject, error)
}

// ObjectStage is an object that is being staged. It is not safe for concurrent
// use.
type ObjectStage interface {
	io.Writer
	// Stage ends the object and says what PublishObject needs. Nothing is written
	// after it.
	Stage(ctx context.Context) (StagedObject, error)
	// Discard lets go of it. It may be called after Stage, and more than once.
	Discard(ctx context.Context) error
}

// A StagedObject is what is needed to publish one. It is kept as JSON.
type StagedObject struct {
	Key   string `json:"key"`
	ID    string `json:"id"` // of the upload; the driver's business
	Bytes int64  `json:"bytes"`
	// Parts are the marks of the uploaded parts, in order.
	Parts []string  `json:"parts,omitempty"`
	Begun time.Time `json:"begun,omitzero"`
}

// An ObjectList asks for a page of objects.
type ObjectList struct {
	Prefix string // of keys; empty is all
	// Delimiter, if set, folds keys that hold it behind the prefix into Prefixes.
	Delimiter string
	After     string // the last page's Next; empty is the first page
	Limit     int    // 1 to 1000; 0 stands for 1000
}

// An ObjectPage is one page of a listing.
type ObjectPage struct {
	Objects  []Object `json:"objects"`
	Prefixes []string `json:"prefixes,omitempty"`
	Next     string   `json:"next,omitempty"` // empty: this was the last page
}

// An Object describes one object.
type Object struct {
	Key      string    `json:"key"`
	Bytes    int64     `json:"bytes"`
	Modified time.Time `json:"modified,omitzero"`
	// ETag is the engine's mark of the content, without quotes.
	ETag string `json:"etag,omitempty"`
	// What follows a listing does not have.
	ContentType string            `json:"content_type,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	// Checksum is as the engine tells it: crc32c=…, sha256=…; empty if it does
	// not.
	Checksum string `json:"checksum,omitempty"`
}

// ObjectRead says what is read of an object.
type ObjectRead struct {
	// From and To are the first byte and the one behind the last; To 0 is the
	// end. A negative From counts from the end.
	From, To int64
	// IfMatch, if set, is the ETag that the object must have; else it is a
	// conflict error.
	IfMatch string
}

// ObjectBody is an open object.
type ObjectBody struct {
	io.ReadCloser
	Object
	// From and To are what is read.
	From, To int64
}

// ObjectWrite says how an object is written.
type ObjectWrite struct {
	ContentType string
	Metadata    map[string]string // names of letters, digits and "-"
	// IfNoneMatch refuses to replace an object that is there.
	IfNoneMatch bool
	// IfMatch, if set, is the ETag that the object must have.
	IfMatch string
	// Bytes is the length of the body where it is known, else -1 or 0.
	Bytes int64
}

// A Presigned URL carries its own authorization: it is a secret until it expires.
type Presigned struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers,omitempty"` // to be sent as they are
	Expires time.Time         `json:"expires"`
}
