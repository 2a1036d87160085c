// Package judge decides whether a stream of changes told the truth.
//
// It reads a client's whole stream, checks its order, plays it into a second
// PostgreSQL and compares that with the source row by row, and holds what
// arrived against a ledger of what was committed. It reads the stream's own
// form, of which docs/cdc.md and docs/types.md tell, and shares no code with
// what writes it but the types of pkg/cdc and the names of pkg/bus.
//
// What a judge needs of the tables that it judges: a row's every insert and
// update gives it a version, a bigint in the column "ver" that no other write
// ever has; and the key of a table that has one holds a column "id" whose
// values are never used again, in no table.
package judge
