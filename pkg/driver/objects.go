package driver

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
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
	// there. The copy has from's content type and metadata, but for those that w
	// has.
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
	// StageObject begins an object. Bytes are sent as they are written, in parts,
	// under ctx. Conditions are refused: a staged object replaces what is there.
	StageObject(ctx context.Context, key string, w ObjectWrite) (ObjectStage, error)
	// PublishObject makes a staged object appear, replacing one that is there. It
	// may be called again after it has worked: it works once, and has no effect on
	// what replaced the object since. If what was staged is gone and was not
	// published, it is a not_found error; so it may be once the object is replaced.
	PublishObject(ctx context.Context, s StagedObject) (Object, error)
	// DiscardObject lets go of what was staged. What is not there is no error.
	DiscardObject(ctx context.Context, s StagedObject) error
	// StagedObjects lists what was staged below a prefix of keys before a time
	// and neither published nor discarded, without marks; no more than a
	// thousand. It is good for DiscardObject alone. The engine may not tell it
	// from a large object that WriteObject, or somebody else, writes just now.
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
	ID    string `json:"id"` // the same in a listing
	Bytes int64  `json:"bytes"`
	// Mark tells the object from others of its key, and Parts are the marks of the
	// uploaded parts, in order: the driver's business.
	Mark  string    `json:"mark,omitempty"`
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
	// end, and so is one behind it. A negative From counts from the end, to which
	// it reads. Window says it in full.
	From, To int64
	// IfMatch, if set, is the ETag that the object must have; else it is a
	// conflict error.
	IfMatch string
}

// Window is what is read of an object of this size: from the first byte to the
// one behind the last. A range that begins behind the end, or that is none, is
// an invalid_request error at the field range; of an empty object its first
// bytes, and its last, are none.
func (r ObjectRead) Window(size int64) (from, to int64, err error) {
	refuse := func(format string, args ...any) (int64, int64, error) {
		return 0, 0, athena.Errorf(athena.CodeInvalidRequest, format, args...).At("range").With("bytes", size)
	}
	switch {
	case r.From < 0 && r.To != 0:
		return refuse("a range that counts from the end reads to the end")
	case r.From < 0:
		return max(0, size+r.From), size, nil
	case r.To < 0, r.To > 0 && r.To <= r.From:
		return refuse("the range ends at %d, before it begins at %d", r.To, r.From)
	case r.From > 0 && r.From >= size:
		return refuse("the range begins at %d; the object has %d bytes", r.From, size)
	case r.To == 0:
		return r.From, size, nil
	}
	return r.From, min(r.To, size), nil
}

// ObjectBody is an open object.
type ObjectBody struct {
	io.ReadCloser
	Object
	// From and To are what is read: those of Window.
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

const (
	// MaxMetadata is the most bytes of an object's metadata, names and values.
	MaxMetadata = 2 << 10
	// ReservedMetadata begins the names of metadata that a driver may keep for
	// itself. They are neither taken nor shown.
	ReservedMetadata = "athena-"
)

// Clean returns w as an engine keeps it, its metadata's names in lower case.
// Errors are invalid_request, with the field's path.
func (w ObjectWrite) Clean() (ObjectWrite, error) {
	refuse := func(field, format string, args ...any) (ObjectWrite, error) {
		return w, athena.Errorf(athena.CodeInvalidRequest, format, args...).At(field)
	}
	switch {
	case w.IfNoneMatch && w.IfMatch != "":
		return refuse("if_match", "if_match and if_none_match exclude each other; give one")
	case !plain(w.IfMatch) || strings.Contains(w.IfMatch, `"`) || len(w.IfMatch) > 256:
		return refuse("if_match", "if_match is no ETag; give one as it was read, without quotes")
	case !plain(w.ContentType) || len(w.ContentType) > 255:
		return refuse("content_type", "content_type holds characters that a media type has not, or more than 255")
	}
	total := 0
	kept := make(map[string]string, len(w.Metadata))
	for _, name := range slices.Sorted(maps.Keys(w.Metadata)) {
		value, lower := w.Metadata[name], strings.ToLower(name)
		field := "metadata." + strings.ToValidUTF8(name, "�")
		switch _, twice := kept[lower]; {
		case name == "" || strings.ContainsFunc(name, notNamed):
			return refuse(field, "metadata %.80q is no name; use letters, digits and \"-\"", name)
		case strings.HasPrefix(lower, ReservedMetadata):
			return refuse(field, "metadata %.80q begins with %s, which is reserved; choose another name", name, ReservedMetadata)
		case twice:
			return refuse(field, "metadata %.80q is given twice; names differ by more than their case", name)
		case !plain(value) || strings.TrimSpace(value) != value:
			return refuse(field, "metadata %.80q has a value with characters that are not printable ASCII, or blanks around it; encode it", name)
		}
		kept[lower] = value
		total += len(name) + len(value)
	}
	if total > MaxMetadata {
		return refuse("metadata", "the metadata has %d bytes; the most is %d", total, MaxMetadata)
	}
	w.Metadata = kept
	return w, nil
}

// plain reports whether s is printable ASCII, as a header can carry it.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func notNamed(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
}

// MaxPresign is how long a presigned URL may be good for.
const MaxPresign = 7 * 24 * time.Hour

// CheckPresign refuses a span that a URL cannot be presigned for, at the field
// expires.
func CheckPresign(expires time.Duration) error {
	if expires < time.Second || expires > MaxPresign {
		return athena.Errorf(athena.CodeInvalidRequest, "expires is %s; it must be between 1s and %s", expires, MaxPresign).At("expires")
	}
	return nil
}

// A Presigned URL carries its own authorization: it is a secret until it expires.
type Presigned struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers,omitempty"` // to be sent as they are
	Expires time.Time         `json:"expires"`
}

// Format shows the method alone, whatever the verb: a URL that is logged is one
// that is given away.
func (p Presigned) Format(f fmt.State, _ rune) { io.WriteString(f, p.Method+" ***") }
