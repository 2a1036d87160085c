// Package format reads and writes the files that objects hold: parquet, ndjson and
// csv. What becomes of each type is said in docs/formats.md.
//
// It knows batches of rows, and neither objects nor pipelines.
package format
