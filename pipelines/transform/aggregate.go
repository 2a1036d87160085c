package transform

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// MostGroups is how many groups an aggregate holds.
const MostGroups = 500_000

// An aggregate makes one row of each group, once all rows have come; one in all if
// there is nothing to group by. Nulls are a group of their own, and are not
// counted, summed or compared.
//
//	count()         int64, of rows; count(column) of those that are not null
//	sum(column)     int64 of integers, decimal of decimals, both exact; float64
//	avg(column)     decimal of integers and decimals, with 6 digits more than they have; float64
//	min, max        of what sorts, in the column's own type
type aggregate struct {
	in     *record.Schema
	schema *record.Schema
	by     []int
	cut    []string // the unit of each of by; "" is none
	sums   []*accumulator
	most   int

	groups  map[string]int
	keys    *record.Batch // the columns of by, of each group
	scratch *record.Batch // those of one row
	buf     []byte
}

func (c *compiler) aggregate(a *spec.Aggregate) (step, *record.Schema, error) {
	s := &aggregate{in: c.schema, schema: &record.Schema{}, most: MostGroups, groups: map[string]int{}}
	for _, name := range a.GroupBy {
		i, err := c.find("group_by", name)
		if err != nil {
			return nil, nil, err
		}
		unit, column := a.Time[name], c.schema.Columns[i]
		if unit != "" && !slices.Contains([]record.Kind{record.Date, record.Timestamp, record.TimestampTZ}, column.Type.Kind) {
			return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "column %q is %s; only dates and timestamps are cut to a %s", name, column.Type, unit).At("time." + name)
		}
		s.by, s.cut = append(s.by, i), append(s.cut, unit)
		s.schema.Columns = append(s.schema.Columns, column)
		s.schema.Key = append(s.schema.Key, name)
	}
	keys := &record.Schema{Columns: slices.Clone(s.schema.Columns)}
	s.keys, s.scratch = record.New(keys, 0), record.New(keys, 1)
	for _, m := range a.Columns {
		sum, err := c.accumulator(m.Value)
		if err != nil {
			return nil, nil, athena.AsError(err).At("columns." + m.Name)
		}
		sum.result.Name = m.Name
		s.sums = append(s.sums, sum)
		s.schema.Columns = append(s.schema.Columns, sum.result)
	}
	return s, s.schema, unique(s.schema)
}

func (s *aggregate) apply(p Part, _ func(int, *RowError)) ([]Part, error) {
	for i := range p.Batch.Rows() {
		group, err := s.group(p.Batch, i)
		if err != nil {
			return nil, err
		}
		for _, sum := range s.sums {
			if err := sum.add(group, p.Batch, i); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// group is the number of a row's group.
func (s *aggregate) group(b *record.Batch, i int) (int, error) {
	s.scratch.Reset()
	for k, c := range s.by {
		v := &s.scratch.Columns[k]
		if v.AppendFrom(&b.Columns[c], i); s.cut[k] != "" && !v.Null(0) {
			v.Ints[0] = cutTime(v.Ints[0], v.Kind, s.cut[k])
		}
	}
	s.scratch.Done()
	s.buf = appendKey(s.buf[:0], s.scratch, places(len(s.by)), 0)
	if g, ok := s.groups[string(s.buf)]; ok {
		return g, nil
	}
	g := len(s.groups)
	if g >= s.most {
		return 0, athena.Errorf(athena.CodeInvalidRequest, "there are more than %d groups, and no more are held; group by less, or aggregate in the source's query", s.most)
	}
	s.begin(string(s.buf))
	return g, nil
}

func (s *aggregate) begin(key string) {
	s.groups[key] = len(s.groups)
	if len(s.by) > 0 {
		s.keys.AppendRow(s.scratch, 0)
	}
	for _, sum := range s.sums {
		sum.begin()
	}
}

var upToEight = []int{0, 1, 2, 3, 4, 5, 6, 7}

func places(n int) []int {
	if n <= len(upToEight) {
		return upToEight[:n]
	}
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// flushRows is how many rows there are in a batch of groups.
const flushRows = 8192

func (s *aggregate) flush(emit func(*record.Batch) error) error {
	if len(s.by) == 0 && len(s.groups) == 0 {
		s.begin("")
	}
	for from := 0; from < len(s.groups); from += flushRows {
		to := min(from+flushRows, len(s.groups))
		b := record.New(s.schema, to-from)
		for g := from; g < to; g++ {
			for k := range s.by {
				b.Columns[k].AppendFrom(&s.keys.Columns[k], g)
			}
			for k, sum := range s.sums {
				sum.append(&b.Columns[len(s.by)+k], g)
			}
			b.Done()
		}
		if err := emit(b); err != nil {
			return err
		}
	}
	s.groups, s.keys, s.sums = nil, nil, nil
	return nil
}

// cutTime takes a time back to the beginning of its minute, hour, day, week, which
// begins on Monday, or month.
func cutTime(n int64, k record.Kind, unit string) int64 {
	if n == record.Infinity || n == record.MinusInfinity {
		return n
	}
	const second = 1_000_000
	day := int64(24 * 3600 * second)
	if k == record.Date {
		day = 1
	}
	switch unit {
	case "minute", "hour":
		if size := map[string]int64{"minute": 60 * second, "hour": 3600 * second}[unit]; k != record.Date {
			return floor(n, size)
		}
		return n
	case "day":
		return floor(n, day)
	case "week": // 1970-01-01 was a Thursday
		return floor(n+3*day, 7*day) - 3*day
	}
	if days := floor(n, day) / day; days < 1<<31 && days > -1<<31 {
		y, m, _ := time.Unix(days*24*3600, 0).UTC().Date()
		return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC).Unix() / (24 * 3600) * day
	}
	return n
}

func floor(n, size int64) int64 {
	rest := n % size
	if rest < 0 {
		rest += size
	}
	return n - rest
}

// An accumulator is one column of results, a value for each group.
type accumulator struct {
	fn     string
	column int // -1 for count()
	of     record.Type
	result record.Column

	counts   []int64
	ints     []int64
	floats   []float64
	decimals []total
	extremes [][]byte
}

func (c *compiler) accumulator(text string) (*accumulator, error) {
	a, err := spec.ParseAggregation(text)
	if err != nil {
		return nil, err
	}
	s := &accumulator{fn: a.Func, column: -1, result: record.Column{Type: record.TypeInt64}}
	if a.Column == "" {
		return s, nil
	}
	if s.column = c.schema.Index(a.Column); s.column < 0 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "%s", missing(c.schema, a.Column))
	}
	s.of = c.schema.Columns[s.column].Type
	numbers := []record.Kind{record.Int, record.Float, record.Decimal}
	switch s.fn {
	case "count":
		return s, nil
	case "sum", "avg":
		if !slices.Contains(numbers, s.of.Kind) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "column %q is %s; %s is of numbers", a.Column, s.of, s.fn)
		}
		switch {
		case s.of.Kind == record.Float:
			s.result.Type = record.TypeFloat64
		case s.of.Kind == record.Decimal || s.fn == "avg":
			s.result.Type = record.TypeDecimal
		}
	default:
		if slices.Contains([]record.Kind{record.Bool, record.JSON, record.Bytes}, s.of.Kind) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "column %q is %s, which has no %s", a.Column, s.of, s.fn)
		}
		s.result = c.schema.Columns[s.column]
	}
	s.result.Nullable = true
	return s, nil
}

func (s *accumulator) begin() {
	s.counts = append(s.counts, 0)
	if s.fn == "count" {
		return
	}
	switch s.result.Type.Kind {
	case record.Float:
		s.floats = append(s.floats, 0)
	case record.Decimal:
		if s.fn == "sum" || s.fn == "avg" {
			s.decimals = append(s.decimals, total{})
			break
		}
		s.extremes = append(s.extremes, nil)
	case record.Text, record.UUID:
		s.extremes = append(s.extremes, nil)
	default:
		s.ints = append(s.ints, 0)
	}
}

func (s *accumulator) add(g int, b *record.Batch, i int) error {
	if s.column < 0 {
		s.counts[g]++
		return nil
	}
	v := &b.Columns[s.column]
	if v.Null(i) {
		return nil
	}
	s.counts[g]++
	switch s.fn {
	case "sum", "avg":
		return s.sum(g, v, i)
	case "min", "max":
		s.extreme(g, v, i)
	}
	return nil
}

func (s *accumulator) sum(g int, v *record.Vector, i int) error {
	switch {
	case s.result.Type.Kind == record.Float:
		s.floats[g] += v.Floats[i]
	case v.Kind == record.Decimal:
		s.decimals[g].add(v.Bytes(i))
	case s.fn == "avg":
		var buf [20]byte
		s.decimals[g].add(strconv.AppendInt(buf[:0], v.Ints[i], 10))
	default:
		n := v.Ints[i]
		sum := s.ints[g] + n
		if n > 0 && sum < s.ints[g] || n < 0 && sum > s.ints[g] {
			return athena.Errorf(athena.CodeInvalidRequest, "the sum %q is more than an int64 holds; cast the column to decimal first", s.result.Name)
		}
		s.ints[g] = sum
	}
	return nil
}

// extreme keeps the value if it is less, or greater, than what there is.
func (s *accumulator) extreme(g int, v *record.Vector, i int) {
	better := func(order int) bool {
		return s.counts[g] == 1 || s.fn == "min" && order < 0 || s.fn == "max" && order > 0
	}
	switch v.Kind {
	case record.Float:
		if better(compareFloats(v.Floats[i], s.floats[g])) {
			s.floats[g] = v.Floats[i]
		}
	case record.Decimal:
		if s.counts[g] == 1 || better(compareDecimals(v.Bytes(i), s.extremes[g])) {
			s.extremes[g] = append(s.extremes[g][:0], v.Bytes(i)...)
		}
	case record.Text, record.UUID:
		if better(bytes.Compare(v.Bytes(i), s.extremes[g])) {
			s.extremes[g] = append(s.extremes[g][:0], v.Bytes(i)...)
		}
	default:
		if better(cmp.Compare(v.Ints[i], s.ints[g])) {
			s.ints[g] = v.Ints[i]
		}
	}
}

// compareFloats has what is no number above all, as PostgreSQL has.
func compareFloats(a, b float64) int {
	switch {
	case math.IsNaN(a) && math.IsNaN(b):
		return 0
	case math.IsNaN(a):
		return 1
	case math.IsNaN(b):
		return -1
	}
	return cmp.Compare(a, b)
}

// append writes the result of a group.
func (s *accumulator) append(dst *record.Vector, g int) {
	switch n := s.counts[g]; {
	case s.fn == "count":
		dst.AppendInt(n)
	case n == 0:
		dst.AppendNull()
	case s.floats != nil && s.fn == "avg":
		dst.AppendFloat(s.floats[g] / float64(n))
	case s.floats != nil:
		dst.AppendFloat(s.floats[g])
	case s.decimals != nil && s.fn == "avg":
		dst.Data = s.decimals[g].appendAverage(dst.Data, n)
		dst.End()
	case s.decimals != nil:
		dst.Data = s.decimals[g].append(dst.Data)
		dst.End()
	case s.extremes != nil:
		dst.AppendBytes(s.extremes[g])
	default:
		dst.AppendInt(s.ints[g])
	}
}
