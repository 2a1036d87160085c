package scylla_test

import "github.com/athena-pipelines/athena/pkg/record"

// kept is the type that a column of a type has that was created.
func kept(t record.Type) record.Type {
	switch t.Kind {
	case record.Decimal:
		return record.TypeDecimal
	case record.Timestamp:
		return record.TypeTimestampTZ
	case record.JSON:
		return record.TypeText
	}
	return t
}
