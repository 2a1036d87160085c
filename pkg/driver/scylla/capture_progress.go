package scylla

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// ticks is a time as timeuuids have it: units of 100 ns since October 1582. Two
// batches of a stream may have the same.
type ticks int64

func ticksOf(t time.Time) ticks { return ticks(gocql.MinTimeUUID(t).Timestamp()) }

func (t ticks) time() time.Time { return t.least().Time() }

// least is the first timeuuid of the tick.
func (t ticks) least() gocql.UUID {
	return gocql.TimeUUIDWith(int64(t), 0, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80})
}

func ticksIn(d time.Duration) ticks { return ticks(d / 100) }

// A batchID names one batch of one table's log.
type batchID struct {
	table  uint32 // hash of the table's name
	stream [streamBytes]byte
	at     gocql.UUID
}

// streamBytes is how long the id of a stream is, in both layouts.
const streamBytes = 16

// tableHash stands for a table in positions. Two tables of one capture that have
// the same cannot be captured together.
func tableHash(t driver.TableName) uint32 {
	h := fnv.New32a()
	h.Write([]byte(t.Schema))
	h.Write([]byte{0})
	h.Write([]byte(t.Table))
	return h.Sum32()
}

// tx is the batch's name for people, as cqlsh writes the two columns.
func (b batchID) tx() string { return "0x" + hex.EncodeToString(b.stream[:]) + ":" + b.at.String() }

// A place is where a change stands in the stream that is written. The source has
// no order of all its changes; they have the order in which they were handed
// over, and the counter of their batch says it. The rest says what they are, so
// that what the stream has can be told from what the log has.
type place struct {
	counter uint64 // of the batch, one more than that of the batch before
	batchID
	n    uint32 // of the change within the batch, from 1; 0 is before the first
	last bool   // of the batch
	late bool   // a sweep found the batch
}

const (
	placeLength = 16 + 1 + 8 + 1 + 2*streamBytes + 1 + 32 + 1 + 8
	mostChanges = 1<<28 - 1 // of a batch
)

// position writes the place: counter, table, stream, cdc$time and number, in
// hexadecimal. The first digit of the number says what the flags do.
func (p place) position() cdc.Position {
	var raw [8]byte
	b := make([]byte, 0, placeLength)
	binary.BigEndian.PutUint64(raw[:], p.counter)
	b = appendHex(b, raw[:])
	b = append(b, '.')
	binary.BigEndian.PutUint32(raw[:], p.table)
	b = appendHex(b, raw[:4])
	b = append(b, '.')
	b = appendHex(b, p.stream[:])
	b = append(b, '.')
	b = appendHex(b, p.at[:])
	b = append(b, '.')
	n := p.n
	if p.last {
		n |= lastFlag
	}
	if p.late {
		n |= lateFlag
	}
	binary.BigEndian.PutUint32(raw[:], n)
	return cdc.Position(appendHex(b, raw[:4]))
}

const (
	lastFlag = 1 << 28
	lateFlag = 1 << 31
)

func appendHex(b, raw []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range raw {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

// batch is the part of a position that all changes of a batch share.
func batchPosition(p cdc.Position) cdc.Position { return p[:placeLength-9] }

// parsePlace reads the position of a change, of a row that a snapshot added
// behind it or of a schema change there: these stand at the change's place.
func parsePlace(pos cdc.Position) (p place, err error) {
	bad := func() (place, error) {
		return place{}, fmt.Errorf("scylla: the position %q is none of ours", pos)
	}
	if len(pos) < placeLength {
		return bad()
	}
	parts := strings.Split(string(pos[:placeLength]), ".")
	if len(parts) != 5 || len(parts[0]) != 16 || len(parts[1]) != 8 || len(parts[2]) != 32 || len(parts[3]) != 32 {
		return bad()
	}
	raw, err := hex.DecodeString(strings.Join(parts, ""))
	if err != nil {
		return bad()
	}
	p.counter = binary.BigEndian.Uint64(raw)
	p.table = binary.BigEndian.Uint32(raw[8:])
	copy(p.stream[:], raw[12:])
	copy(p.at[:], raw[28:])
	n := binary.BigEndian.Uint32(raw[44:])
	p.n, p.last, p.late = n&mostChanges, n&lastFlag != 0, n&lateFlag != 0
	return p, nil
}

// counterPosition stands before all positions of the batch with the counter, and
// behind those of the batches before it.
func counterPosition(counter uint64) cdc.Position {
	return cdc.Position(fmt.Sprintf("%016X", counter))
}

// A mark says what has been handed over when it is: enough to learn the rest from
// the stream. Its text grows as it does.
type mark struct {
	// floor: all changes of all streams before it have been, save late ones.
	floor ticks
	// behind is the counter of a batch: it and those before it are older than
	// floor, so that what is not stands behind it.
	behind uint64
	// swept and since are the same for the sweep, which finds the late ones.
	swept ticks
	since uint64
	// counter is of the last batch.
	counter uint64
}

func (m mark) String() string {
	b := make([]byte, 0, markLength)
	for i, n := range []uint64{uint64(m.floor), m.behind, uint64(m.swept), m.since, m.counter} {
		if i > 0 {
			b = append(b, '.')
		}
		var raw [8]byte
		binary.BigEndian.PutUint64(raw[:], n)
		b = appendHex(b, raw[:])
	}
	return string(b)
}

const markLength = 5*16 + 4

func parseMark(text string) (mark, error) {
	var n [5]uint64
	var err error
	if len(text) != markLength {
		err = strconv.ErrSyntax
	}
	for i := 0; i < len(n) && err == nil; i++ {
		n[i], err = strconv.ParseUint(text[17*i:17*i+16], 16, 64)
	}
	m := mark{ticks(n[0]), n[1], ticks(n[2]), n[3], n[4]}
	if err != nil || m.String() != text {
		return mark{}, fmt.Errorf("scylla: the mark %q is none of ours", text)
	}
	return m, nil
}

// A trail knows how old the changes were that were handed over with a counter or
// before it, well enough to be short: it keeps one step in trailEvery.
type trail struct {
	steps []step
	at    time.Time // when the last one was begun
}

// A step: no batch up to the counter has a change of this time or later than it.
type step struct {
	counter uint64
	newest  ticks
}

const (
	trailEvery = 100 * time.Millisecond
	mostSteps  = 1 << 16
)

// begin starts a trail at a counter before which all is older than floor.
func (t *trail) begin(counter uint64, floor ticks) {
	t.steps = []step{{counter, floor - 1}}
}

// add notes a batch that was handed over in order.
func (t *trail) add(counter uint64, at ticks, now time.Time) {
	last := &t.steps[len(t.steps)-1]
	s := step{counter, max(last.newest, at)}
	if len(t.steps) > 1 && now.Sub(t.at) < trailEvery {
		*last = s
		return
	}
	t.at = now
	if len(t.steps) == mostSteps { // a floor that stays where it is
		kept := t.steps[:1]
		for i := 2; i < len(t.steps); i += 2 {
			kept = append(kept, t.steps[i])
		}
		t.steps = kept
	}
	t.steps = append(t.steps, s)
}

// learn notes what an earlier process handed over; no batch up to the counter is
// younger than newest.
func (t *trail) learn(counter uint64, newest ticks) {
	last := &t.steps[len(t.steps)-1]
	if len(t.steps) > 1 && counter < t.steps[len(t.steps)-2].counter+learnEvery {
		*last = step{counter, newest}
		return
	}
	if len(t.steps) < mostSteps {
		t.steps = append(t.steps, step{counter, newest})
		return
	}
	*last = step{counter, newest}
}

// learnEvery is how many batches have one step that were handed over before.
const learnEvery = 1000

// before is the highest counter that is known to have nothing behind floor at or
// before it.
func (t *trail) before(floor ticks) uint64 {
	for i := len(t.steps) - 1; i > 0; i-- {
		if t.steps[i].newest < floor {
			return t.steps[i].counter
		}
	}
	return t.steps[0].counter
}

// forget drops what before needs for no floor from now on.
func (t *trail) forget(floor ticks) {
	n := 0
	for n+1 < len(t.steps) && t.steps[n+1].newest < floor {
		n++
	}
	t.steps = append(t.steps[:0], t.steps[n:]...)
}
