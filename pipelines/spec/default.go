package spec

import (
	"slices"
	"time"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// The words that fields may hold.
const (
	SnapshotInitial = "initial"
	SnapshotNever   = "never"

	FormatParquet = "parquet"
	FormatNDJSON  = "ndjson"
	FormatCSV     = "csv"

	CompressionNone   = "none"
	CompressionGzip   = "gzip"
	CompressionZstd   = "zstd"
	CompressionSnappy = "snappy"

	ToDead = "dead"
	ToDrop = "drop"

	MaskHash   = "hash"
	MaskRedact = "redact"
	MaskLast4  = "last4"
)

// Defaults.
const (
	DefaultRollRows  = 1_000_000
	DefaultRollBytes = 128 << 20
	DefaultRollEvery = time.Minute
	DefaultMaxRate   = 0.01
	DefaultParallel  = 2
	MostParallel     = 64
)

// Normalize fills in what the definition leaves to defaults.
func (p *Pipeline) Normalize() {
	if p.Source.CDC != nil {
		or(&p.Source.CDC.Snapshot, SnapshotInitial)
	}
	if p.Sink.Table != "" {
		p.Sink.Mode = p.Mode()
	}
	if o := p.Sink.Objects; o != nil {
		or(&o.Format, FormatParquet)
		if o.Format == FormatParquet {
			or(&o.Compression, CompressionZstd)
		}
		or(&o.Compression, CompressionNone)
		or(&o.Roll.Rows, DefaultRollRows)
		or(&o.Roll.Bytes, DefaultRollBytes)
		if p.Streams() {
			or(&o.Roll.Every, Duration(DefaultRollEvery))
		}
	}
	for _, t := range p.Transforms {
		if t.Flatten != nil {
			or(&t.Flatten.Prefix, t.Flatten.Column+"_")
		}
	}
	or(&p.Schema.Columns, Evolve)
	or(&p.Schema.Types, Freeze)
	if p.Errors.MaxRate == nil {
		rate := DefaultMaxRate
		p.Errors.MaxRate = &rate
	}
	or(&p.Errors.To, ToDead)
	or(&p.Parallel, DefaultParallel)
}

// Routes reports whether a step says of each row where it goes.
func (p *Pipeline) Routes() bool {
	return slices.ContainsFunc(p.Transforms, func(t Transform) bool { return t.Route != "" })
}

// Mode is that of a sink table, by default or not.
func (p *Pipeline) Mode() driver.WriteMode {
	switch {
	case p.Sink.Mode != "":
		return p.Sink.Mode
	case p.Streams():
		return driver.Upsert
	}
	return driver.Append
}

func or[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Streams reports whether the pipeline follows changes until it is stopped.
func (p *Pipeline) Streams() bool { return p.Source.CDC != nil }

// Kind is which of its kinds a source is: table, query, cdc, objects or
// deferred; "" if none is given.
func (s *Source) Kind() string {
	switch {
	case s.Table != "":
		return "table"
	case s.Query != "":
		return "query"
	case s.CDC != nil:
		return "cdc"
	case s.Objects != nil:
		return "objects"
	case s.Deferred != "":
		return "deferred"
	}
	return ""
}

// Kind is which of its kinds a sink is: table or objects; "" if none is given.
func (s *Sink) Kind() string {
	switch {
	case s.Table != "":
		return "table"
	case s.Objects != nil:
		return "objects"
	}
	return ""
}

// Kind names the field that is set, "" if none is.
func (t *Transform) Kind() string {
	if set := t.kinds(); len(set) > 0 {
		return set[0]
	}
	return ""
}

func (t *Transform) kinds() (set []string) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"filter", t.Filter != ""}, {"set", t.Set != nil}, {"rename", t.Rename != nil}, {"select", t.Select != nil},
		{"drop", t.Drop != nil}, {"cast", t.Cast != nil}, {"mask", t.Mask != nil}, {"flatten", t.Flatten != nil},
		{"route", t.Route != ""}, {"dedupe", t.Dedupe != nil}, {"aggregate", t.Aggregate != nil},
	} {
		if f.set {
			set = append(set, f.name)
		}
	}
	return set
}
