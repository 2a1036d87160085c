package spec

import "github.com/athena-pipelines/athena/pkg/record"

// A Transform is one step: exactly one of its fields is set.
type Transform struct {
	// Filter keeps the rows for which a CEL expression is true. The row is row,
	// and what is known of a change is meta: op, pos, ts, table.
	Filter string `json:"filter,omitempty"`
	// Set computes columns by CEL expressions, new ones and those that are there.
	// Each sees the row as it was before the step; new columns come behind those
	// that are there, in the order in which they are written.
	Set    Ordered[string]   `json:"set,omitempty"`
	Rename map[string]string `json:"rename,omitempty"` // old name to new
	Select []string          `json:"select,omitempty"` // keeps these, in this order
	Drop   []string          `json:"drop,omitempty"`
	// Cast gives columns another type; a value that does not fit makes its row a
	// dead letter.
	Cast map[string]record.Type `json:"cast,omitempty"`
	// Mask hides values: hash (SHA-256 with the pipeline's name), redact or last4.
	Mask    map[string]string `json:"mask,omitempty"`
	Flatten *Flatten          `json:"flatten,omitempty"`
	// Route gives by a CEL expression the table, or the prefix below the sink's,
	// that a row goes to.
	Route     string     `json:"route,omitempty"`
	Dedupe    *Dedupe    `json:"dedupe,omitempty"`
	Aggregate *Aggregate `json:"aggregate,omitempty"`
}

// Flatten makes columns of the fields of a JSON object.
type Flatten struct {
	Column string               `json:"column"`
	Fields Ordered[record.Type] `json:"fields"`           // of the object
	Prefix string               `json:"prefix,omitempty"` // of the new columns' names; the column's name and "_" unless it is given
}

// Dedupe keeps one row of each key.
type Dedupe struct {
	Key []string `json:"key"`
}

// Aggregate makes one row of each group; for batches only.
type Aggregate struct {
	GroupBy []string `json:"group_by,omitempty"`
	// Time cuts a time column of the group to minute, hour, day, week or month.
	Time map[string]string `json:"time,omitempty"`
	// Columns are the results: a name, and count(), or sum, min, max, avg of a
	// column, such as sum(total).
	Columns Ordered[string] `json:"columns"`
}
