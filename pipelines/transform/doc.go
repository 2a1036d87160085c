// Package transform runs the steps between a source and a sink on batches of
// rows.
//
// Steps are compiled once against a schema: an expression that does not fit it is
// refused then, and none is looked up by name for each row. Expressions are CEL.
// They see a row's columns as follows:
//
//	bool             bool
//	int16 to int64   int
//	float32, float64 double
//	decimal          string, digit for digit; double(row.total) counts with it
//	text             string
//	bytes            bytes
//	uuid, date, time string, as docs/types.md writes them
//	timestamp(tz)    timestamp; one without a zone as if its clock were UTC's
//	json             what it holds
//
// Laws, which the code cites:
//
//  1. Null in, null out: an expression that cannot be evaluated, and looked at a
//     null, is null. A filter keeps no row of which it is null.
//  2. Another row on which a step fails is rejected, with its cause; the others
//     go on.
//  3. A value that the source did not give is not made up. What is computed of
//     such values alone is absent too; a row of which some were given and some
//     not is rejected. Of a delete and of a truncate it is absent.
//  4. Deletes and truncates pass every filter. Where the sink keeps rows by key,
//     an update that a filter does not keep goes on as a delete, and so does any
//     change that was made without a look at the row, so that the target does not
//     keep the row as it was before.
//  5. A change that deletes many rows names them by what they share. A step that
//     leaves such a column out, or makes another of it, rejects the change: it would
//     delete others.
//  6. A change that says what it did to a part of a column, and not what the value
//     is now, is rejected where the column is wanted: by an expression, or by what
//     comes out.
//  7. Memory is bounded: steps that look at all rows state how many keys or
//     groups they hold, and fail above that.
//
// The package knows no client and no engine.
package transform
