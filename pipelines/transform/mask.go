package transform

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A mask hides the values of columns, which become text. Nulls stay nulls.
//
//   - hash: HMAC-SHA-256 of the value's text, keyed by the pipeline's name, in hex;
//     equal values have equal hashes within one pipeline.
//   - redact: the same three stars for all.
//   - last4: stars, and the last four characters of a text that has more than
//     eight.
type mask struct {
	schema  *record.Schema
	columns []int
	how     []string
	hash    hash.Hash
	scratch []byte
}

func (c *compiler) mask(how map[string]string) (step, *record.Schema, error) {
	m := &mask{schema: &record.Schema{Columns: slices.Clone(c.schema.Columns), Key: c.schema.Key}}
	for _, name := range slices.Sorted(maps.Keys(how)) {
		i, err := c.find(name, name)
		if err != nil {
			return nil, nil, err
		}
		if how[name] == spec.MaskHash && c.Pipeline == "" {
			return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "a hash is keyed by the pipeline's name, and this one has none; give it a name").At(name)
		}
		if how[name] != spec.MaskHash && slices.Contains(m.schema.Key, name) {
			m.schema.Key = nil // it no longer tells rows apart
		}
		m.schema.Columns[i] = record.Column{Name: name, Type: record.TypeText, Nullable: m.schema.Columns[i].Nullable}
		m.columns, m.how = append(m.columns, i), append(m.how, how[name])
	}
	m.hash = hmac.New(sha256.New, []byte(c.Pipeline))
	return m, m.schema, nil
}

func (m *mask) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	columns := slices.Clone(p.Batch.Columns)
	n := p.Batch.Rows()
	keep := all(n)
	for k, c := range m.columns {
		keep = p.shared(keep, c, m.how[k] == spec.MaskHash, reject)
		src, t := &p.Batch.Columns[c], p.Batch.Schema.Columns[c].Type
		dst := vector(record.TypeText, n)
		for i := range n {
			switch {
			case src.Absent(i):
				dst.AppendAbsent()
			case src.Null(i):
				dst.AppendNull()
			default:
				m.scratch = src.AppendText(m.scratch[:0], t, i)
				dst.Data = m.hide(dst.Data, m.how[k], m.scratch)
				dst.End()
			}
		}
		columns[c] = dst
	}
	return p.with(p.batch(m.schema, columns))[0].keep(keep), nil
}

func (m *mask) hide(dst []byte, how string, text []byte) []byte {
	switch how {
	case spec.MaskHash:
		var sum [sha256.Size]byte
		m.hash.Reset()
		m.hash.Write(text)
		return hex.AppendEncode(dst, m.hash.Sum(sum[:0]))
	case spec.MaskLast4:
		last := text
		for range 4 {
			_, n := utf8.DecodeLastRune(last)
			last = last[:len(last)-n]
		}
		dst = append(dst, "****"...)
		if utf8.RuneCount(text) > 8 {
			dst = append(dst, text[len(last):]...)
		}
		return dst
	}
	return append(dst, "***"...)
}
