package cdc

import "fmt"

// Read returns the position of the n-th row, from 1, that a snapshot adds
// behind p: between p and everything that the log has next.
//
// Positions of drivers hold digits, capital letters and dots, and have one
// length in all of a stream, so that the suffixes of Read and BeforeNext sort
// behind them and before what follows.
func (p Position) Read(n uint64) Position { return Position(fmt.Sprintf("%sr%010X", p, n)) }

// BeforeNext returns a position behind p, and behind the rows that a snapshot
// adds there, and before what the log has next: that of the schema change which
// the next change needs.
func (p Position) BeforeNext() Position { return p + "s" }
