// Package spec is the definition of a pipeline: what people write, in YAML or
// JSON. It decodes and validates; it knows no client and dials nobody.
package spec

import (
	"encoding/json"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A Pipeline is one definition.
type Pipeline struct {
	// Name is [a-z][a-z0-9_-]{0,62}. A definition that is run at once may be
	// without.
	Name        string      `json:"name,omitempty"`
	Description string      `json:"description,omitempty"`
	Source      Source      `json:"source"`
	Transforms  []Transform `json:"transforms,omitempty"`
	Sink        Sink        `json:"sink"`
	// Schedule is a cron expression of five fields, in UTC; for batches only.
	Schedule string   `json:"schedule,omitempty"`
	Schema   Contract `json:"schema,omitzero"`
	Errors   Errors   `json:"errors,omitzero"`
	// Parallel is how many tasks run at once; 1 to 64, and 0 stands for 2.
	Parallel int    `json:"parallel,omitempty"`
	Tests    []Test `json:"tests,omitempty"`
	// Params makes the definition a template: "${name}" in its texts stands for
	// the value that a run gives; see Instantiate.
	Params map[string]Param `json:"params,omitempty"`
	// DryRun asks for no more than a plan of level sample, of a definition that is
	// run at once.
	DryRun bool `json:"dry_run,omitempty"`
}

// A Source says where rows come from: exactly one of Table, Query, CDC, Objects
// and Deferred is set.
type Source struct {
	// Client is whose backend is read; behind Deferred, that of the job.
	Client string `json:"client"`

	Table   string             `json:"table,omitempty"` // schema.table
	Columns []string           `json:"columns,omitempty"`
	Where   []driver.Condition `json:"where,omitempty"`
	Limit   int64              `json:"limit,omitempty"`

	Query  string            `json:"query,omitempty"`
	Params []json.RawMessage `json:"params,omitempty"`

	CDC      *CDCSource    `json:"cdc,omitempty"`
	Objects  *ObjectSource `json:"objects,omitempty"`
	Deferred string        `json:"deferred,omitempty"` // id of a job that has a result
}

// A CDCSource follows the changes of tables as the client's capture stores them.
type CDCSource struct {
	Tables []string `json:"tables"` // schema.table
	// Snapshot is initial (the rows that are there come first) or never; initial
	// unless it is given.
	Snapshot string `json:"snapshot,omitempty"`
	// Where is a CEL expression as subscriptions have it.
	Where string `json:"where,omitempty"`
}

// An ObjectSource reads objects below a prefix.
type ObjectSource struct {
	Prefix string `json:"prefix"`
	// Format is parquet, ndjson or csv; by the object's name unless it is given.
	Format string `json:"format,omitempty"`
	// Columns gives names and types where the format has none; inferred from the
	// first rows unless it is given.
	Columns []ObjectColumn `json:"columns,omitempty"`
}

// An ObjectColumn is a column of an object.
type ObjectColumn struct {
	Name string      `json:"name"`
	Type record.Type `json:"type"`
}

// A Sink says where rows go: exactly one of Table and Objects is set.
type Sink struct {
	Client string `json:"client"`

	Table  string           `json:"table,omitempty"`
	Mode   driver.WriteMode `json:"mode,omitempty"` // append unless it is given; upsert behind cdc
	Key    []string         `json:"key,omitempty"`  // the source's unless it is given
	Create bool             `json:"create,omitempty"`
	// WriteTime and TTL name columns that say how a row is written, and are not
	// written themselves; see driver.TableTarget.
	WriteTime string `json:"write_time,omitempty"`
	TTL       string `json:"ttl,omitempty"`

	Objects *ObjectSink `json:"objects,omitempty"`
}

// An ObjectSink writes objects.
type ObjectSink struct {
	// Prefix is where they go. "{{column}}" stands for the value of a column,
	// which parts the rows by it.
	Prefix string `json:"prefix"`
	// Format is parquet, ndjson or csv; parquet unless it is given.
	Format string `json:"format,omitempty"`
	// Compression is none, gzip, zstd or snappy (parquet only); zstd for parquet
	// and none for the others unless it is given.
	Compression string `json:"compression,omitempty"`
	Roll        Roll   `json:"roll,omitzero"`
}

// A Roll says when an object is ended and the next begun; zero fields stand for
// 1,000,000 rows, 128 MiB, and a minute behind cdc.
type Roll struct {
	Rows  int64    `json:"rows,omitempty"`
	Bytes Bytes    `json:"bytes,omitempty"`
	Every Duration `json:"every,omitempty"`
}

// A Policy says what becomes of what a schema contract does not expect.
type Policy string

// The policies.
const (
	Evolve       Policy = "evolve"        // the sink takes the change over
	Freeze       Policy = "freeze"        // the run stops
	DiscardRow   Policy = "discard_row"   // rows that show it are dropped, and counted
	DiscardValue Policy = "discard_value" // the values are dropped
	Quarantine   Policy = "quarantine"    // rows that show it become dead letters
)

// A Contract says what may become of the schema while the pipeline lives.
type Contract struct {
	Columns Policy `json:"columns,omitempty"` // of new columns; evolve unless it is given
	Types   Policy `json:"types,omitempty"`   // of changed types; freeze unless it is given
}

// Errors says what becomes of rows that cannot go on.
type Errors struct {
	// MaxRate is the share of them above which a run stops, 0 to 1; looked at once
	// a hundred rows have come. 0.01 unless it is given.
	MaxRate *float64 `json:"max_rate,omitempty"`
	// To is dead, where they are kept and can be redriven, or drop, where they are
	// counted only; dead unless it is given.
	To string `json:"to,omitempty"`
}

// A Test is rows that go in, and those that must come out.
type Test struct {
	Name string            `json:"name"`
	In   []json.RawMessage `json:"in"`
	// Out has the rows; of each, columns that are not named may have any value.
	Out []json.RawMessage `json:"out"`
	// Dead is how many rows must become dead letters.
	Dead int `json:"dead,omitempty"`
}

// A Param is a value that a run of a template gives.
type Param struct {
	Description string  `json:"description,omitempty"`
	Default     *string `json:"default,omitempty"` // without one, the run must give it
	// Pattern is a regular expression for the whole value; letters, digits and any
	// of _ . : / @ + - unless it is given, so that no value ends the text it is in.
	Pattern string `json:"pattern,omitempty"`
}
