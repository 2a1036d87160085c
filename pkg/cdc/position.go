package cdc

// maxPosition bounds the length of a position.
const maxPosition = 255

// Valid reports whether p could be a position of some stream: digits, letters
// and dots. The empty position is none that a change can have.
func (p Position) Valid() bool {
	if p == "" || len(p) > maxPosition {
		return false
	}
	for i := range len(p) {
		c := p[i]
		if c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// Read returns the position of the n-th row, from 1 and below 2^40, that a
// snapshot adds behind p: between p and everything that the log has next.
//
// Positions of drivers hold digits, capital letters and dots, and have one
// length in all of a stream, so that the suffixes of Read and BeforeNext sort
// behind them and before what follows.
func (p Position) Read(n uint64) Position {
	var buf [64]byte
	b := append(append(buf[:0], p...), 'r')
	for shift := 36; shift >= 0; shift -= 4 {
		b = append(b, "0123456789ABCDEF"[n>>shift&15])
	}
	return Position(b)
}

// BeforeNext returns a position behind p, and behind the rows that a snapshot
// adds there, and before what the log has next: that of the schema change which
// the next change needs. Called on what it returned it gives one more such
// place.
func (p Position) BeforeNext() Position { return p + "s" }
