package s3

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"testing"

	"pgregory.net/rapid"
)

// TestPartsReadAsTheyWereWritten holds a part to be a bounded bytes.Buffer that
// can be read again from anywhere.
func TestPartsReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	source := make([]byte, 3*chunkSize+100)
	for i := range source {
		source[i] = byte(i * 7 / 3)
	}
	size := rapid.OneOf(rapid.IntRange(0, len(source)), rapid.SampledFrom([]int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize}))
	rapid.Check(t, func(t *rapid.T) {
		limit := size.Draw(t, "limit")
		rest := source[:size.Draw(t, "bytes")]
		want := rest[:min(limit, len(rest))]
		var p part
		defer p.release()
		for len(rest) > 0 && p.size < int64(limit) {
			n := min(len(rest), size.Draw(t, "piece")+1)
			if rapid.Bool().Draw(t, "by reading") {
				before := p.size
				if err := p.fill(bytes.NewReader(rest[:n]), int64(limit)); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				rest = rest[p.size-before:]
				continue
			}
			rest = rest[p.append(rest[:n], int64(limit)):]
		}
		if p.size != int64(len(want)) || p.sum != crc32.Checksum(want, castagnoli) {
			t.Fatalf("%d bytes with the checksum %x, want %d with %x", p.size, p.sum, len(want), crc32.Checksum(want, castagnoli))
		}
		for range 2 {
			from := rapid.Int64Range(0, p.size).Draw(t, "from")
			if at, err := p.Seek(from, io.SeekStart); at != from || err != nil {
				t.Fatalf("Seek(%d) = %d, %v", from, at, err)
			}
			got, err := io.ReadAll(&p)
			if err != nil || !bytes.Equal(got, want[from:]) {
				t.Fatalf("%d bytes from %d of %d, or others; %v", len(got), from, len(want), err)
			}
		}
		if _, err := p.Seek(p.size+1, io.SeekStart); err == nil {
			t.Fatal("a seek behind the end works")
		}
	})
}
