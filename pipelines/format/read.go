package format

import (
	"fmt"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A Reader reads the rows of one file. It is not safe for concurrent use.
type Reader interface {
	// Schema is that of the next batch. It changes where a file shows a column that
	// it has not had before.
	Schema() *record.Schema
	// Next returns some rows, which are good until it is called again; io.EOF
	// behind the last. A file that is cut off or damaged is an invalid_request
	// error.
	Next(size driver.BatchSize) (Batch, error)
	// Close lets go of what the reader holds. It does not close what it reads.
	Close() error
}

// A Batch is what a Reader gives at once.
type Batch struct {
	*record.Batch
	// Rejected are the rows among those that were looked at that could not be read.
	Rejected []Rejected
	// Done is how many rows of the file have been looked at, those that were
	// rejected among them.
	Done int64
}

// A Rejected row could not be read.
type Rejected struct {
	Line   int64  // where it begins in ndjson and csv, the number of the row in parquet; from 1
	Column string // where it is about one
	Reason string
	Row    []byte // as it stands there, and no more than 64 KiB of it
}

// ReadOptions says what is read of a file. The zero value is all of it.
type ReadOptions struct {
	// Columns are read, in this order; nil is all of them.
	Columns []string
	// Schema gives names and types to formats that have none. Without it they are
	// inferred from the first rows.
	Schema *record.Schema
	// Evolve adds columns that Schema lacks; else they are left out. Without a
	// Schema they are always added.
	Evolve bool
}

// mostRow bounds what is kept of a rejected row, and of a value in a message.
const mostRow = 64 << 10

func cut(row []byte) []byte { return append([]byte(nil), row[:min(len(row), mostRow)]...) }

// damaged says that a file cannot be read on.
func damaged(cause error, format string, args ...any) error {
	return athena.Wrap(athena.CodeInvalidRequest, cause, "the file is cut off or damaged: %s", fmt.Sprintf(format, args...))
}

// pick returns the columns of a schema that are wanted.
func pick(s *record.Schema, names []string) (*record.Schema, error) {
	if names == nil {
		return s, nil
	}
	out := &record.Schema{}
	for _, name := range names {
		i := s.Index(name)
		if i < 0 {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "the file has no column %.60q; it has %.500q", name, s.Names())
		}
		out.Columns = append(out.Columns, s.Columns[i])
	}
	for _, k := range s.Key {
		if out.Index(k) < 0 {
			return out, nil
		}
	}
	out.Key = s.Key
	return out, nil
}
