// Package params reads the query parameters of a route strictly: a parameter
// that the route does not have, that is given twice, or whose value does not
// fit, is an invalid_request error that names it. A caller who mistypes a filter
// must not be answered as if there were none.
package params

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Query collects what a route reads. It is not safe for concurrent use. Read
// all parameters, then ask Err.
type Query struct {
	values url.Values
	known  []string
	err    error
}

// Of reads the request's query string.
func Of(c *gin.Context) *Query {
	values, err := url.ParseQuery(c.Request.URL.RawQuery)
	q := &Query{values: values}
	if err != nil {
		q.fail(athena.Errorf(athena.CodeInvalidRequest, "the query string is malformed; escape what is not a letter or digit"))
	}
	return q
}

// None is the error for a request to a route that has no parameters.
func None(c *gin.Context) error { return Of(c).Err() }

// String reads a parameter; empty if it is absent.
func (q *Query) String(name string) string {
	q.known = append(q.known, name)
	list := q.values[name]
	switch {
	case len(list) == 0:
		return ""
	case len(list) > 1:
		q.refuse(name, "parameter %s is given %d times; give it once", name, len(list))
	case !Printable(list[0]):
		q.refuse(name, "parameter %s holds control characters or is not UTF-8", name)
	case len(list[0]) > 4096:
		q.refuse(name, "parameter %s has %d bytes; the most is 4096", name, len(list[0]))
	}
	return list[0]
}

// Strings reads a parameter that may be repeated.
func (q *Query) Strings(name string) []string {
	q.known = append(q.known, name)
	list := q.values[name]
	if len(list) > 64 || slices.ContainsFunc(list, func(s string) bool { return !Printable(s) || len(s) > 4096 }) {
		q.refuse(name, "parameter %s has a value that is not allowed, or more than 64 of them", name)
	}
	return list
}

// Required reads a parameter that must not be absent or empty.
func (q *Query) Required(name, what string) string {
	v := q.String(name)
	if v == "" {
		q.refuse(name, "parameter %s is missing; give %s", name, what)
	}
	return v
}

// Client reads a client's name; empty if it is absent.
func (q *Query) Client(name string) string {
	v := q.String(name)
	if v != "" {
		if err := athena.CheckName(v); err != nil {
			q.refuse(name, "parameter %s is %.80q, which cannot be a client's name", name, v)
		}
	}
	return v
}

// OneOf reads a parameter with a fixed set of values; empty if it is absent.
func (q *Query) OneOf(name string, allowed ...string) string {
	v := q.String(name)
	if v != "" && !slices.Contains(allowed, v) {
		q.refuse(name, "parameter %s is %.80q; it must be one of %s", name, v, strings.Join(allowed, ", "))
	}
	return v
}

// Bool reads true or false; absent is false.
func (q *Query) Bool(name string) bool { return q.OneOf(name, "true", "false") == "true" }

// Int reads a whole number between least and most; def if it is absent.
func (q *Query) Int(name string, def, least, most int) int {
	v := q.String(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		q.refuse(name, "parameter %s is %.80q; it must be a whole number between %d and %d", name, v, least, most)
	}
	return n
}

// Duration reads a span between 0 and most, such as 30s; def if it is absent.
func (q *Query) Duration(name string, def, most time.Duration) time.Duration {
	v := q.String(name)
	if v == "" {
		return def
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > most {
		q.refuse(name, "parameter %s is %.80q; it must be a span between 0s and %s, such as 30s", name, v, most)
	}
	return d
}

// Time reads an instant of RFC 3339; the zero time if it is absent.
func (q *Query) Time(name string) time.Time {
	v := q.String(name)
	if v == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil || t.Year() < 1970 || t.Year() > 9998 {
		q.refuse(name, "parameter %s is %.80q; it must be an instant such as 2026-01-31T15:04:05Z", name, v)
		return time.Time{}
	}
	return t
}

// Err is the first thing wrong with what was read, or a parameter that nobody
// read.
func (q *Query) Err() error {
	if q.err != nil {
		return q.err
	}
	var unknown []string
	for name := range q.values {
		if !slices.Contains(q.known, name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	name := slices.Min(unknown)
	return athena.Errorf(athena.CodeInvalidRequest, "unknown query parameter %.80q; %s", name, q.offer()).At(strings.ToValidUTF8(clip(name), "�"))
}

func (q *Query) offer() string {
	if len(q.known) == 0 {
		return "this route has none"
	}
	return "this route knows " + strings.Join(q.known, ", ")
}

// Refuse notes that something read is wrong, for a parameter whose form this
// package does not know.
func (q *Query) Refuse(err error) { q.fail(err) }

func (q *Query) refuse(name, format string, args ...any) {
	q.fail(athena.Errorf(athena.CodeInvalidRequest, format, args...).At(name))
}

func (q *Query) fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

// Printable reports whether s is UTF-8 without control characters.
func Printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
}

func clip(s string) string { return s[:min(len(s), 80)] }
