package pipecrash

import "github.com/athena-pipelines/athena/bench/rig"

func groups() []group {
	return []group{
		{
			name: "batches to tables", rig: rig.Config{Workers: 1},
			scenarios: []scenario{
				{"a table is appended, no row twice and none missing", 7, tables("append", keyless, "")},
				{"rows that are filtered and computed are appended once", 6, transformed},
				{"a table is upserted, and what it does not have is left alone", 6, upserted},
				{"a table is merged, and counts what it changed", 7, tables("merge", older, merges)},
				{"a table is overwritten as a whole", 7, tables("overwrite", older, overwrites)},
			},
		},
		{
			name: "batches by two workers", rig: rig.Config{Workers: 2},
			scenarios: []scenario{
				{"two workers append a table, no row twice and none missing", 9, tables("append", keyless, "")},
				{"two workers merge a table", 9, tables("merge", older, merges)},
				{"the rows of a query are appended once", 6, queried},
				{"the rows of objects are appended once", 7, fromObjects},
				{"two workers write ndjson, each row in one object that is listed", 10, toObjects("ndjson").run},
			},
		},
		{
			name: "batches to objects", rig: rig.Config{Workers: 1},
			scenarios: []scenario{
				{"a table goes to parquet, each row in one object that is listed", 10, toObjects("parquet").run},
				{"a table goes to ndjson, each row in one object that is listed", 9, toObjects("ndjson").run},
			},
		},
		{
			name: "streams", rig: rig.Config{Workers: 1}, tables: []string{"one", "two", "three"},
			scenarios: []scenario{
				{"a table is kept as it is, while it changes", 9, mirrored("one")},
				{"every change is in a log once, in its order", 9, logged("two")},
				{"every change is in one object that is listed, in its order", 11, logObjects("three", "ndjson")},
			},
		},
		{
			name: "streams by two workers", rig: rig.Config{Workers: 2}, tables: []string{"one", "two"},
			scenarios: []scenario{
				{"two workers keep a table as it is, while it changes", 9, mirrored("one")},
				{"two workers log every change in parquet once", 11, logObjects("two", "parquet")},
			},
		},
		{
			name: "workers that stand still", rig: rig.Config{Workers: 2},
			scenarios: []scenario{
				{"a table is appended once, by whoever is alive", 6, haunted(table("append", keyless, ""))},
				{"a table is merged once, by whoever is alive", 4, haunted(table("merge", older, merges))},
				{"ndjson is written once, by whoever is alive", 6, haunted(toObjects("ndjson"))},
			},
		},
		{
			name: "one process, with the broker in it", rig: rig.Config{Inside: true}, tables: []string{"one", "two"},
			scenarios: []scenario{
				{"it appends a table, no row twice and none missing", 6, tables("append", keyless, "")},
				{"it writes parquet, each row in one object that is listed", 6, toObjects("parquet").run},
				{"it keeps a table as it is, while it changes", 6, mirrored("one")},
				{"it logs every change in ndjson once", 6, logObjects("two", "ndjson")},
			},
		},
	}
}

func short() group {
	return group{
		name: "a few kills", rig: rig.Config{Workers: 2},
		scenarios: []scenario{
			{"a table is appended, no row twice and none missing", 4, tables("append", keyless, "")},
			{"a table goes to ndjson, each row in one object that is listed", 4, toObjects("ndjson").run},
		},
	}
}
