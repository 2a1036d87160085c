// Package record holds rows as they move through a pipeline: many at a time,
// column by column, each column of one type. No value is an allocation of its
// own.
//
// The types are those that table engines and file formats agree on. What is none
// of them travels as Text or JSON, in the form of docs/types.md, and Native keeps
// the name of the type that it had.
//
// The package knows neither engines nor pipelines.
package record
