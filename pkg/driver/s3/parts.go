package s3

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sync"
)

const chunkSize = 256 << 10

// chunks are what parts are made of, so that a stage that holds little takes
// little, and one that holds much needs no large piece of memory at once.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A part is the bytes of one request's body, in memory, so that the request can
// be made again. It is written first and read then.
type part struct {
	chunks []*[chunkSize]byte
	size   int64
	at     int64 // of the next read
	sum    uint32
}

// room returns the free rest of the last chunk, or a new one.
func (p *part) room() []byte {
	used := int(p.size % chunkSize)
	if used == 0 && int64(len(p.chunks))*chunkSize == p.size {
		p.chunks = append(p.chunks, chunks.Get().(*[chunkSize]byte))
	}
	return p.chunks[len(p.chunks)-1][used:]
}

func (p *part) took(b []byte) {
	p.sum = crc32.Update(p.sum, castagnoli, b)
	p.size += int64(len(b))
}

// append takes as much of b as there is room for below limit.
func (p *part) append(b []byte, limit int64) (n int) {
	for len(b) > 0 && p.size < limit {
		room := p.room()
		m := copy(room[:min(int64(len(room)), limit-p.size)], b)
		p.took(room[:m])
		b = b[m:]
		n += m
	}
	return n
}

// fill reads from r up to limit. It returns io.EOF at r's end.
func (p *part) fill(r io.Reader, limit int64) error {
	for idle := 0; p.size < limit; {
		room := p.room()
		n, err := r.Read(room[:min(int64(len(room)), limit-p.size)])
		p.took(room[:n])
		if err != nil {
			return err
		}
		if idle++; n > 0 {
			idle = 0
		} else if idle == 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// release gives the memory back. The part is empty then.
func (p *part) release() {
	for _, c := range p.chunks {
		chunks.Put(c)
	}
	*p = part{}
}

// checksum is the CRC32C as S3 writes it.
func (p *part) checksum() string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, p.sum))
}

// Read reads on.
func (p *part) Read(b []byte) (n int, err error) {
	if p.at >= p.size {
		return 0, io.EOF
	}
	c := p.chunks[p.at/chunkSize]
	n = copy(b, c[p.at%chunkSize:min(chunkSize, p.at%chunkSize+p.size-p.at)])
	p.at += int64(n)
	return n, nil
}

// Seek moves the next read.
func (p *part) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += p.at
	case io.SeekEnd:
		offset += p.size
	}
	if offset < 0 || offset > p.size {
		return p.at, errors.New("s3: seek outside of the part")
	}
	p.at = offset
	return offset, nil
}

const (
	maxParts  = 10_000 // of one upload, by S3's documentation
	maxObject = 5 << 40
)

// partSize is how large the nth part is, from 1. Where the length is known all
// are alike; else they double after each thousand, which makes 8 TiB of 10,000
// parts of 8 MiB to begin with.
func partSize(first, known int64, n int) int64 {
	if known > 0 {
		return max(first, (known+maxParts-1)/maxParts)
	}
	return first << min((n-1)/1000, 30)
}
