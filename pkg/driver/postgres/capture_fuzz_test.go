package postgres

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A strictSink holds what a decoder hands over to the laws of changes, whatever
// the server sent.
type strictSink struct {
	t   *testing.T
	enc *cdc.Encoder
}

func (s *strictSink) Change(_ context.Context, c *cdc.Change) error {
	line := s.enc.Append(nil, c)
	if !json.Valid(line) || strings.ContainsAny(string(line), "\n\r") {
		s.t.Fatalf("no change: %q", line)
	}
	var back cdc.Change
	if err := cdc.Decode(line, &back); err != nil {
		s.t.Fatalf("%v: %s", err, line)
	}
	return nil
}

func (*strictSink) Reject(context.Context, driver.Rejected) error { return nil }
func (*strictSink) Commit(context.Context, string) error          { return nil }
func (*strictSink) Pause(context.Context) error                   { return nil }

// FuzzMessages gives a decoder what no server sends: messages cut from any bytes.
// It must refuse or take them, and hand over nothing that is no change.
func FuzzMessages(f *testing.F) {
	u16 := func(n int) string { return string(binary.BigEndian.AppendUint16(nil, uint16(n))) }
	u32 := func(n int) string { return string(binary.BigEndian.AppendUint32(nil, uint32(n))) }
	u64 := func(n int) string { return string(binary.BigEndian.AppendUint64(nil, uint64(n))) }
	framed := func(messages ...string) []byte {
		var b []byte
		for _, m := range messages {
			b = append(append(b, u16(len(m))...), m...)
		}
		return b
	}
	described := "R" + u32(7) + "public\x00t\x00d" + u16(2) + "\x01id\x00" + u32(23) + u32(0) + "\x00v\x00" + u32(25) + u32(0)
	row := func(id, v string) string { return u16(2) + "t" + u32(len(id)) + id + "t" + u32(len(v)) + v }
	begin, commit := "B"+u64(100)+u64(1)+u32(9), "C\x00"+u64(100)+u64(120)+u64(1)
	f.Add(framed(begin, described, "I"+u32(7)+"N"+row("1", "a"), "U"+u32(7)+"K"+u16(2)+"t"+u32(1)+"1n"+"N"+row("2", "b"), commit))
	f.Add(framed(described, begin, "D"+u32(7)+"O"+row("1", "a"), "T"+u32(1)+"\x00"+u32(7), "M\x01"+u64(5)+"app\x00"+u32(2)+"hi", commit))
	f.Add(framed("S"+u32(9)+"\x01", "R"+u32(9)+described[1:], "I"+u32(10)+u32(7)+"N"+row("1", "a"), "E", "A"+u32(9)+u32(10),
		"c"+u32(9)+"\x00"+u64(100)+u64(120)+u64(1)))
	f.Add(framed("b"+u64(90)+u64(95)+u64(1)+u32(9)+"gid\x00", described, "I"+u32(7)+"N"+row("1", "a"), "P\x00"+u64(90)+u64(95)+u64(1)+u32(9)+"gid\x00",
		"K\x00"+u64(100)+u64(120)+u64(1)+u32(9)+"gid\x00"))
	f.Add(framed(begin, described, "U"+u32(7)+"N"+u16(2)+"t"+u32(1)+"1u", "O"+u64(3)+"origin\x00", "Y"+u32(20000)+"public\x00mood\x00", commit))
	f.Fuzz(func(t *testing.T, data []byte) {
		pool, err := newSpool(t.TempDir(), 64, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.close()
		b := &Backend{}
		s := &changeStream{backend: b, spool: pool, wake: make(chan struct{}, 1)}
		s.cfg.Version = func(driver.TableName, []cdc.Column) (int, bool) { return 1, true }
		d := &s.decoder
		d.init(s)
		d.describe = func(_ context.Context, r *relation) error {
			r.enc = newRowEncoder(&b.types, r.columns)
			return nil
		}
		d.sink = &strictSink{t: t, enc: cdc.NewEncoder("c")}
		for len(data) >= 2 {
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			msg := append([]byte(nil), data[2:2+n]...)
			data = data[2+n:]
			if err := d.message(t.Context(), msg); err != nil {
				return // it was refused, and the stream ends
			}
		}
	})
}
