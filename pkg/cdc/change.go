package cdc

import (
	"encoding/json"
	"time"
)

// Op says what happened.
type Op string

// The operations.
const (
	Insert   Op = "insert"
	Update   Op = "update"
	Delete   Op = "delete"
	Truncate Op = "truncate"
	Read     Op = "read"    // a row as a snapshot found it
	Schema   Op = "schema"  // the columns of a table, before the first row that has them
	Message  Op = "message" // written to the log by an application

	DeletePartition Op = "delete_partition" // wide-row engines
	DeleteRange     Op = "delete_range"
)

// Ops lists all operations.
func Ops() []Op {
	return []Op{Insert, Update, Delete, Truncate, Read, Schema, Message, DeletePartition, DeleteRange}
}

// Position is where a change stands in its stream. Positions of one stream sort
// as text; apart from that their form is the driver's business. The empty
// position stands before all others.
type Position string

// A Change is one committed change. Key, Before and After are JSON objects by
// column, nil where the engine gave none (law 2).
type Change struct {
	Pos    Position `json:"pos"`
	Op     Op       `json:"op"`
	Client string   `json:"client"`
	// Schema and Table are empty for a message.
	Schema string `json:"schema,omitempty"`
	Table  string `json:"table,omitempty"`
	// Key holds the row's identity: the columns of the primary key, or of the
	// replica identity where that is another index.
	Key json.RawMessage `json:"key,omitempty"`
	// Before has the columns of the old row that the engine logs: those of its
	// identity, or all of them with REPLICA IDENTITY FULL. An update that left
	// the identity as it was has none otherwise. Of an engine with images of the
	// rows before, it has the columns that the image has.
	Before json.RawMessage `json:"before,omitempty"`
	// After has the columns of the new row that are known: all that are neither in
	// Unchanged nor in Delta. An insert or update without After has only its key
	// known: the engine does not log what was written. A row that is shared by a
	// partition has its columns alone, and Key those of the partition.
	After json.RawMessage `json:"after,omitempty"`
	// Unchanged names columns that the change did not touch and that the engine
	// therefore did not log: large values of an update; of an engine that logs what
	// was written, also those of an insert that goes over a row. They are absent
	// from After.
	Unchanged []string `json:"unchanged,omitempty"`
	// Delta has, by column, what an update did to a part of a collection or of a
	// user-defined type whose whole value the engine does not log. Such a column
	// is absent from After, and not among Unchanged.
	//
	//	a set           {"add":[…],"remove":[…]}
	//	a map           {"put":{…},"remove":[keys]}
	//	a list          {"append":[{"key":…,"value":…}],"remove":[keys]}
	//	a type of users {"set":{…},"unset":[names]}
	//
	// Elements of a list have keys of their own, which no query shows; they stand in
	// the order of these, and append replaces one whose key is there.
	Delta json.RawMessage `json:"delta,omitempty"`
	// Range has the bounds of op delete_range, within the partition that Key names:
	// {"from":{"key":{…},"inclusive":true},"to":{…}}, in the order of the columns'
	// values. A bound that is absent is open. It names the first columns of the
	// clustering key, and bounds compare one column after the other: a row lies on a
	// bound if it has those columns' values, and is deleted then if it is inclusive.
	Range json.RawMessage `json:"range,omitempty"`
	// WriteTime is the time in microseconds since 1970 by which the engine itself
	// settles which of two writes is the later one, where it does so. TTL is how
	// many seconds the written values live; 0 is for ever.
	WriteTime int64 `json:"writetime,omitempty"`
	TTL       int64 `json:"ttl,omitempty"`
	// Late says that changes with a later WriteTime, of the same row perhaps, came
	// before it in the stream.
	Late bool `json:"late,omitempty"`
	// Tx is nil for what a snapshot adds, among it the truncate before the rows of a
	// table without a key, and for messages outside of transactions.
	Tx *Transaction `json:"tx,omitempty"`
	// SchemaVersion counts the column sets of the table in this stream, from 1.
	SchemaVersion int      `json:"schema_version,omitempty"`
	Columns       []Column `json:"columns,omitempty"` // of op schema
	Prefix        string   `json:"prefix,omitempty"`  // of op message
	Content       []byte   `json:"content,omitempty"` // of op message; base64 in JSON
}

// A Transaction is what is known of the transaction that made a change.
type Transaction struct {
	ID  string   `json:"id"`  // the engine's own
	Pos Position `json:"pos"` // of the transaction: the part that its changes' positions share
	N   uint64   `json:"n"`   // number of the change within it, from 1
	// Last marks the last change of the transaction that this stream has.
	Last bool      `json:"last,omitempty"`
	At   time.Time `json:"at"` // of the commit
}

// A Column describes one column of a table.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type"`          // the engine's own name of the type
	Key  bool   `json:"key,omitempty"` // part of the row's identity
}
