package scyllatest

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// murmur3 is the token of a partition key: the first half of MurmurHash3 x64 128,
// with the bytes of the tail taken as signed, as Cassandra does.
func murmur3(key []byte) int64 {
	const c1, c2 = 0x87c37b91114253d5, 0x4cf5ad432745937f
	mix1 := func(k uint64) uint64 { return bits.RotateLeft64(k*c1, 31) * c2 }
	mix2 := func(k uint64) uint64 { return bits.RotateLeft64(k*c2, 33) * c1 }
	final := func(h uint64) uint64 {
		h = (h ^ h>>33) * 0xff51afd7ed558ccd
		h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
		return h ^ h>>33
	}
	var h1, h2 uint64
	rest := key
	for ; len(rest) >= 16; rest = rest[16:] {
		h1 ^= mix1(binary.LittleEndian.Uint64(rest))
		h1 = (bits.RotateLeft64(h1, 27)+h2)*5 + 0x52dce729
		h2 ^= mix2(binary.LittleEndian.Uint64(rest[8:]))
		h2 = (bits.RotateLeft64(h2, 31)+h1)*5 + 0x38495ab5
	}
	var k1, k2 uint64
	for i, b := range rest {
		v := uint64(int64(int8(b)))
		if i < 8 {
			k1 ^= v << (8 * i)
		} else {
			k2 ^= v << (8 * (i - 8))
		}
	}
	h2 ^= mix2(k2)
	h1 ^= mix1(k1)
	h1 ^= uint64(len(key))
	h2 ^= uint64(len(key))
	h1 += h2
	h2 += h1
	h1, h2 = final(h1), final(h2)
	h1 += h2
	if t := int64(h1); t != math.MinInt64 {
		return t
	}
	return math.MaxInt64 // the least token is none of a key
}

// partitionKey is a partition key as one string of bytes.
func partitionKey(vals [][]byte) []byte {
	if len(vals) == 1 {
		return vals[0]
	}
	var b []byte
	for _, v := range vals {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...)
		b = append(b, 0)
	}
	return b
}

// token is where a partition of the table is on the ring; those of a CDC log are
// where the ids of their streams say.
func (t *table) token(key []byte) int64 {
	if t.base != nil {
		if len(key) < 8 {
			return math.MinInt64
		}
		return int64(binary.BigEndian.Uint64(key))
	}
	return murmur3(key)
}
