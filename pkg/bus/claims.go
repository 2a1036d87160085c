package bus

import (
	"maps"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// claims are the subjects that the messages of one batch write to or have
// expectations on (law 2). The server checks an expectation with a wildcard
// against the stream alone and not against the batch, so that two messages of a
// batch could both be "the first" (nats-server 2.15.2; see
// TestWildcardExpectationInBatch).
type claims struct {
	written  map[string]bool // subjects, also as seen through each shape
	expected map[string]bool // subjects of expectations
	subjects []string
	shapes   []string // filters with wildcards, one for each pattern of them
}

// add adds the claims of messages that belong together, or reports false and
// adds none if they are in conflict with those of the others, or if one of them
// has an expectation on what an earlier one of them writes or expects. A write
// to what an earlier one of them expects is in order.
func (c *claims) add(msgs ...*nats.Msg) bool {
	for _, m := range msgs {
		if want := expectation(m); want != "" {
			c.shape(want)
		}
	}
	own := claims{written: map[string]bool{}, expected: map[string]bool{}}
	for _, m := range msgs {
		if want := expectation(m); want != "" {
			if c.written[want] || c.expected[want] || own.written[want] || own.expected[want] {
				return false
			}
			own.expected[want] = true
		}
		for _, v := range c.views(m.Subject) {
			if c.expected[v] {
				return false
			}
			own.written[v] = true
		}
		own.subjects = append(own.subjects, m.Subject)
	}
	if c.written == nil {
		c.written, c.expected = own.written, own.expected
	} else {
		maps.Copy(c.written, own.written)
		maps.Copy(c.expected, own.expected)
	}
	c.subjects = append(c.subjects, own.subjects...)
	return true
}

// expectation returns the subject, perhaps with wildcards, that m is only stored
// in regard to; empty if there is none.
func expectation(m *nats.Msg) string {
	h := m.Header
	if h.Get(jetstream.ExpectedLastSubjSeqHeader) != "" {
		if s := h.Get(jetstream.ExpectedLastSubjSeqSubjHeader); s != "" {
			return s
		}
		return m.Subject
	}
	// A rollup, and a schedule is one, must be its subject's first in a batch.
	if h.Get(jetstream.MsgRollup) != "" || h.Get(jetstream.ScheduleHeader) != "" {
		return m.Subject
	}
	return ""
}

// shape makes views look through a filter's wildcards from now on.
func (c *claims) shape(filter string) {
	if !strings.ContainsAny(filter, "*>") {
		return
	}
	for _, s := range c.shapes {
		if v, ok := through(s, filter); ok && v == filter {
			if w, ok := through(filter, s); ok && w == s {
				return
			}
		}
	}
	c.shapes = append(c.shapes, filter)
	for _, s := range c.subjects {
		if v, ok := through(filter, s); ok {
			c.written[v] = true
		}
	}
}

// views returns the subject and what it looks like through each shape.
func (c *claims) views(subject string) []string {
	out := []string{subject}
	for _, s := range c.shapes {
		if v, ok := through(s, subject); ok {
			out = append(out, v)
		}
	}
	return out
}

// through puts the wildcards of a filter into a subject of the same length: a
// filter matches a subject if and only if it is what the subject looks like
// through it.
func through(filter, subject string) (string, bool) {
	var b strings.Builder
	for {
		f, moreF, okF := strings.Cut(filter, ".")
		s, moreS, okS := strings.Cut(subject, ".")
		switch f {
		case ">":
			b.WriteString(">")
			return b.String(), true
		case "*":
			b.WriteString("*")
		default:
			b.WriteString(s)
		}
		if okF != okS {
			return "", false
		}
		if !okF {
			return b.String(), true
		}
		b.WriteByte('.')
		filter, subject = moreF, moreS
	}
}
