package changefeed

import (
	"bytes"
	"regexp"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// Where a reader may begin, besides at a cursor or a time.
const (
	FromNow      = "now"      // what is stored from now on
	FromEarliest = "earliest" // all that is kept
)

// Genesis is the cursor before the first change of a stream that has none yet.
const Genesis cdc.Position = "0"

// cursorForm is that of positions and of what before makes of them: what a
// driver made, then what snapshots and changes of columns have added to it. No
// word that somebody may take for an instruction has it.
var cursorForm = regexp.MustCompile(`^[0-9A-Z.]{1,128}[0-9A-F.rs]{0,64}z?$`)

// ParseCursor reads a cursor that a caller sent; its error is invalid_request at
// the field.
func ParseCursor(field, text string) (cdc.Position, error) {
	if p := cdc.Position(text); p.Valid() && cursorForm.MatchString(text) {
		return p, nil
	}
	return "", athena.Errorf(athena.CodeInvalidRequest, "%s is %.80q, which is no cursor; send one as it was given", field, text).At(field)
}

// A Start is where a reader begins. The zero value is now.
type Start struct {
	earliest bool
	cursor   cdc.Position
	at       time.Time
}

// ParseFrom reads where to begin: now (also where text is empty), earliest, a
// cursor, or an instant of RFC 3339, which stands for the changes that were
// stored then or later. Its error is invalid_request at the field from.
func ParseFrom(text string) (Start, error) {
	switch text {
	case "", FromNow:
		return Start{}, nil
	case FromEarliest:
		return Start{earliest: true}, nil
	}
	if cursor, err := ParseCursor("from", text); err == nil {
		return Start{cursor: cursor}, nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || at.Year() < 1970 || at.Year() > 9998 {
		return Start{}, athena.Errorf(athena.CodeInvalidRequest, "from is %.80q; it must be now, earliest, a cursor, or an instant such as 2026-01-31T15:04:05Z", text).At("from")
	}
	return Start{at: at}, nil
}

// At is the start behind a cursor.
func At(cursor cdc.Position) Start { return Start{cursor: cursor} }

// before returns a cursor behind everything that can stand before p, and before
// p: by it nothing of p's stream is left out from p on, and nothing before p is
// asked for.
func before(p cdc.Position) cdc.Position {
	if p == "" {
		return Genesis
	}
	head, last := p[:len(p)-1], p[len(p)-1]
	switch {
	case last == '0':
		return head + ".z"
	case last == 'A':
		return head + "9z"
	case last == '.':
		return head
	}
	return head + cdc.Position(last-1) + "z"
}

// PositionOf returns the position of a line of a batch; empty if it is no change.
func PositionOf(line []byte) cdc.Position {
	pos, _, ok := head(line)
	if !ok {
		return ""
	}
	return cdc.Position(pos)
}

// head reads position and operation of a line, as the encoder of the athena
// envelope promises them at its beginning. It takes no memory.
func head(line []byte) (pos, op []byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"pos":"`))
	if !ok {
		return nil, nil, false
	}
	pos, rest, ok = bytes.Cut(rest, []byte(`","op":"`))
	if !ok {
		return nil, nil, false
	}
	op, _, ok = bytes.Cut(rest, []byte(`"`))
	return pos, op, ok
}
