package spec

import (
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A Duration is written as "60s".
type Duration = athena.Duration

// Bytes is a number of bytes, written as "128MiB" or as a number.
type Bytes int64

var byteUnits = []struct {
	name string
	size int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1},
}

// String writes the number with the largest binary unit that it is a multiple
// of.
func (b Bytes) String() string {
	for _, u := range byteUnits[:4] {
		if b != 0 && int64(b)%u.size == 0 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads a whole number, and a unit behind it: B, KiB, MiB, GiB,
// TiB, or KB, MB, GB, TB in thousands.
func (b *Bytes) UnmarshalText(text []byte) error {
	digits, size := string(text), int64(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(digits, u.name); ok {
			digits, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<63-1)/size {
		return athena.Errorf(athena.CodeInvalidRequest, "%q is not a number of bytes; write it as 128MiB, 64KB or 1048576", clip(string(text)))
	}
	*b = Bytes(n * size)
	return nil
}
