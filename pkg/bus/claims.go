package bus

import (
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

// add adds a message's claims, or reports false and adds none if they are in
// conflict with those of another message.
func (c *claims) add(m *nats.Msg) bool {
	want := expectation(m)
	if want != "" {
		c.shape(want)
		if c.written[want] || c.expected[want] {
			return false
		}
	}
	seen := c.views(m.Subject)
	for _, v := range seen {
		if c.expected[v] {
			return false
		}
	}
	if c.written == nil {
		c.written, c.expected = map[string]bool{}, map[string]bool{}
	}
	for _, v := range seen {
		c.written[v] = true
	}
	c.subjects = append(c.subjects, m.Subject)
	if want != "" {
		c.expected[want] = true
	}
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
