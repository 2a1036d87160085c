package scylla

import (
	"context"
	"encoding/json"
	"math"
	"math/big"
	"slices"
	"strconv"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const (
	// mostParts bounds the parts of a table.
	mostParts = 512
	// blindParts are made of a table whose size nobody knows yet.
	blindParts = 16
	// A part of so many bytes is meant to be all.
	allInOne = 1 << 40
	// murmur3 is how the class of the one partitioner ends whose tokens are known here.
	murmur3 = "Murmur3Partitioner"
)

// A tokenRange is a part of a table: the partitions whose token is above From and up to
// To. Nil is open. Tokens are hashes of the partition key, and so of about the same
// number in ranges of the same length.
type tokenRange struct {
	Key  []string `json:"key"`
	From *int64   `json:"from,omitempty,string"`
	To   *int64   `json:"to,omitempty,string"`
}

// tokenConditions restrict a statement to a part.
func tokenConditions(m *tableMeta, text string) (where []string, args []any, err error) {
	if text == "" {
		return nil, nil, nil
	}
	var r tokenRange
	if json.Unmarshal([]byte(text), &r) != nil || len(r.Key) == 0 {
		return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "the range of a part of %s.%s is none of this driver's", m.keyspace, m.name).At("range")
	}
	if key := m.of(kindPartitionKey); !slices.Equal(key, r.Key) {
		return nil, nil, athena.Errorf(athena.CodeConflict, "the key of %s.%s is not what it was when the table was split; start again", m.keyspace, m.name).At("range")
	}
	token := "token(" + quoteAll(r.Key) + ")"
	if r.From != nil {
		where, args = append(where, token+" > ?"), append(args, *r.From)
	}
	if r.To != nil {
		where, args = append(where, token+" <= ?"), append(args, *r.To)
	}
	return where, args, nil
}

// SplitTable divides the ring into ranges of equal length.
func (b *Backend) SplitTable(ctx context.Context, r driver.TableRead, size int64) ([]driver.TablePart, error) {
	if size <= 0 {
		size = 64 << 20
	}
	m, err := b.tableMeta(ctx, r.Table.Schema, r.Table.Table)
	if err != nil {
		return nil, err
	}
	s, err := newScan(m, r, driver.TablePart{}) // what cannot be read cannot be split
	if err != nil {
		return nil, err
	}
	rows, bytes, err := b.estimate(ctx, m)
	if err != nil {
		return nil, err
	}
	n := int64(blindParts)
	switch {
	case bytes >= 0:
		n = min((bytes+size-1)/size, mostParts)
	case size >= allInOne:
		n = 1
	}
	one := r.Limit > 0 || n < 2 || find(m, s.conditions) != nil
	if !one {
		if one, err = b.otherTokens(ctx); err != nil {
			return nil, err
		}
	}
	if one {
		return []driver.TablePart{{Rows: rows, Bytes: bytes}}, nil
	}
	parts := make([]driver.TablePart, n)
	bounds := tokens(int(n))
	for i := range parts {
		t := tokenRange{Key: m.of(kindPartitionKey)}
		if i > 0 {
			t.From = &bounds[i-1]
		}
		if i < len(bounds) {
			t.To = &bounds[i]
		}
		text, err := json.Marshal(t)
		if err != nil {
			return nil, err
		}
		parts[i] = driver.TablePart{Range: string(text), Rows: share(rows, n), Bytes: share(bytes, n)}
	}
	return parts, nil
}

func share(sum, n int64) int64 {
	if sum < 0 {
		return -1
	}
	return sum / n
}

// tokens divides the ring into n parts, by n-1 tokens.
func tokens(n int) []int64 {
	ring := new(big.Int).Lsh(big.NewInt(1), 64)
	list := make([]int64, n-1)
	for i := range list {
		at := new(big.Int).Mul(ring, big.NewInt(int64(i+1)))
		at.Div(at, big.NewInt(int64(n)))
		list[i] = at.Add(at, big.NewInt(math.MinInt64)).Int64()
	}
	return list
}

// otherTokens reports whether the cluster makes its tokens in another way.
func (b *Backend) otherTokens(ctx context.Context) (other bool, err error) {
	var class string
	err = b.catalog(ctx, "SELECT partitioner FROM system.local WHERE key = 'local'", nil, []any{&class}, func() error {
		other = len(class) < len(murmur3) || class[len(class)-len(murmur3):] != murmur3
		return nil
	})
	return other, err
}

// estimate sums up what one node estimates of the ranges that it is the first to hold,
// and takes the rest of the ring to be alike. -1 is not known: estimates are made some
// minutes after the rows. Rows are not told apart from partitions.
func (b *Backend) estimate(ctx context.Context, m *tableMeta) (rows, bytes int64, err error) {
	var start, end string
	var mean, count int64
	var covered, partitions, size float64
	err = b.catalog(ctx, "SELECT range_start, range_end, mean_partition_size, partitions_count FROM system.size_estimates WHERE keyspace_name = ? AND table_name = ?",
		[]any{m.keyspace, m.name}, []any{&start, &end, &mean, &count}, func() error {
			from, err1 := strconv.ParseInt(start, 10, 64)
			to, err2 := strconv.ParseInt(end, 10, 64)
			if err1 != nil || err2 != nil {
				return nil // of another partitioner
			}
			covered += float64(uint64(to) - uint64(from)) // around the ring
			if from == to {
				covered += 1 << 63 * 2.0
			}
			partitions += float64(count)
			size += float64(mean) * float64(count)
			return nil
		})
	if err != nil || covered == 0 {
		return -1, -1, err
	}
	whole := math.Pow(2, 64) / covered
	rows, bytes = -1, int64(size*whole)
	if len(m.of(kindClustering)) == 0 {
		rows = int64(partitions * whole)
	}
	if bytes == 0 { // none of it is on disk yet
		return -1, -1, nil
	}
	return rows, bytes, nil
}
