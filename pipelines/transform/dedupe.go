package transform

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// MostKeys is how many different keys a dedupe of a batch holds: of each a hash,
// about 40 bytes.
const MostKeys = 4_000_000

// A dedupe keeps one row of each key: of a batch the first in the whole run, of
// changes in each batch those that a later one does not make up for, where a
// truncate counts as an end. Nulls are equal to each other.
type dedupe struct {
	columns []int
	changes bool
	most    int
	seen    map[[16]byte]struct{}
	scratch []byte
}

func (c *compiler) dedupe(d *spec.Dedupe) (step, *record.Schema, error) {
	s := &dedupe{changes: c.Changes, most: MostKeys, seen: map[[16]byte]struct{}{}}
	for _, name := range d.Key {
		i, err := c.find("key", name)
		if err != nil {
			return nil, nil, err
		}
		s.columns = append(s.columns, i)
	}
	out := c.schema
	if len(out.Key) == 0 && !c.Changes { // now it is one
		out = &record.Schema{Columns: out.Columns, Key: slices.Clone(d.Key)}
	}
	return s, out, nil
}

func (s *dedupe) apply(p Part, _ func(int, *RowError)) ([]Part, error) {
	if s.changes {
		return s.last(p), nil
	}
	keep := make([]bool, p.Batch.Rows())
	for i := range keep {
		s.scratch = appendKey(s.scratch[:0], p.Batch, s.columns, i)
		sum := sha256.Sum256(s.scratch)
		key := [16]byte(sum[:16])
		if _, ok := s.seen[key]; ok {
			continue
		}
		if len(s.seen) >= s.most {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "there are more than %d different keys, and no more are held; part the rows with a where, or dedupe in the source's query", s.most)
		}
		s.seen[key] = struct{}{}
		keep[i] = true
	}
	return p.keep(keep), nil
}

// last keeps the last change of each key, and those before it of which something
// stays: a value that it does not give, or, since it came late, all of it.
func (s *dedupe) last(p Part) []Part {
	keep := make([]bool, p.Batch.Rows())
	seen := map[string]int64{} // when the row was written or deleted as a whole
	for i := len(keep) - 1; i >= 0; i-- {
		if p.Batch.Changes[i].Op == cdc.Truncate {
			clear(seen)
			keep[i] = true
			continue
		}
		if p.Batch.Changes[i].Many() {
			keep[i] = true // of other keys as well
			continue
		}
		if slices.ContainsFunc(s.columns, func(c int) bool { return p.Batch.Columns[c].Absent(i) }) {
			keep[i] = true // nobody knows which key it has
			continue
		}
		s.scratch = appendKey(s.scratch[:0], p.Batch, s.columns, i)
		at := p.Batch.Changes[i].WriteTime
		if later, ok := seen[string(s.scratch)]; ok && (at < later || at == 0) {
			continue
		}
		keep[i] = true
		if whole(p.Batch, i) {
			seen[string(s.scratch)] = at
		}
	}
	return p.keep(keep)
}

// whole reports whether nothing of what a row was before a change is left behind it.
func whole(b *record.Batch, i int) bool {
	if b.Changes[i].Op == cdc.Delete {
		return true
	}
	for c := range b.Columns {
		if b.Columns[c].Absent(i) {
			return false
		}
	}
	return true
}

// appendKey appends the values of some columns so that no two rows with other
// values have the same bytes.
func appendKey(dst []byte, b *record.Batch, columns []int, i int) []byte {
	for _, c := range columns {
		v := &b.Columns[c]
		if v.Null(i) {
			dst = append(dst, 0)
			continue
		}
		dst = append(dst, 1)
		switch v.Kind {
		case record.Float:
			dst = appendFloatKey(dst, v.Floats[i])
		case record.Decimal:
			dst = appendText(dst, normal(v.Bytes(i)))
		case record.Text, record.Bytes, record.UUID, record.JSON:
			dst = appendText(dst, v.Bytes(i))
		default:
			dst = binary.BigEndian.AppendUint64(dst, uint64(v.Ints[i]))
		}
	}
	return dst
}

func appendText(dst, s []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}
