package format

import (
	"io"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// The formats.
const (
	Parquet = "parquet"
	NDJSON  = "ndjson"
	CSV     = "csv"
)

// The compressions.
const (
	None   = "none"
	Gzip   = "gzip"
	Zstd   = "zstd"
	Snappy = "snappy" // of parquet only
)

// A Writer writes rows to one file. It is not safe for concurrent use.
type Writer interface {
	// Write takes the rows of a batch that are named, in that order; nil is all of
	// them. Rows that the format cannot hold are returned and left out. The batch
	// has the writer's schema, and may be changed after the call.
	Write(b *record.Batch, rows []int) ([]record.Rejected, error)
	// Size is about how many bytes the file has so far, and Buffered how many bytes
	// of memory the writer takes.
	Size() int64
	Buffered() int64
	// Close ends the file. It does not close what it is written to.
	Close() error
}

// New returns a writer. An empty compression is zstd for parquet, and none for the
// others. Meta is kept in files that have a place for it, which is parquet.
func New(format, compression string, w io.Writer, s *record.Schema, meta map[string]string) (Writer, error) {
	if err := Check(format, compression); err != nil {
		return nil, err
	}
	if len(s.Columns) == 0 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "rows without columns cannot be written")
	}
	for i, name := range s.Names() {
		if slices.Index(s.Names(), name) != i {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "two columns have the name %.60q; rename one of them", name)
		}
	}
	if format == Parquet {
		return newParquet(compression, w, s, meta)
	}
	return newLines(format, compression, w, s)
}

// Check reports whether a format can be written with a compression.
func Check(format, compression string) error {
	known := []string{None, Gzip, Zstd}
	switch format {
	case Parquet:
		known = append(known, Snappy)
	case NDJSON, CSV:
	default:
		return athena.Errorf(athena.CodeInvalidRequest, "format %.40q is unknown; it must be parquet, ndjson or csv", format).At("format")
	}
	if compression != "" && !slices.Contains(known, compression) {
		return athena.Errorf(athena.CodeInvalidRequest, "compression %.40q of %s is unknown; it must be one of %s", compression, format, strings.Join(known, ", ")).At("compression")
	}
	return nil
}

// Suffix is how names of such files end: .parquet, .ndjson.zst.
func Suffix(format, compression string) string {
	if format == Parquet {
		return ".parquet"
	}
	return "." + format + map[string]string{Gzip: ".gz", Zstd: ".zst"}[compression]
}

// ContentType is the media type of such files.
func ContentType(format, compression string) string {
	switch {
	case format == Parquet:
		return "application/vnd.apache.parquet"
	case compression == Gzip:
		return "application/gzip"
	case compression == Zstd:
		return "application/zstd"
	case format == CSV:
		return "text/csv; charset=utf-8; header=present"
	}
	return "application/x-ndjson"
}

// Of tells format and compression by a file's name; false if the name says
// nothing.
func Of(name string) (format, compression string, ok bool) {
	compression = None
	if base, found := strings.CutSuffix(name, ".gz"); found {
		name, compression = base, Gzip
	} else if base, found := strings.CutSuffix(name, ".zst"); found {
		name, compression = base, Zstd
	}
	switch dot := strings.LastIndexByte(name, '.'); strings.ToLower(name[dot+1:]) {
	case "parquet", "parq":
		return Parquet, compression, compression == None
	case "ndjson", "jsonl", "json":
		return NDJSON, compression, true
	case "csv":
		return CSV, compression, true
	}
	return "", compression, false
}
