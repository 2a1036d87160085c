package sdk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Events yields where the job stands, now and after each change, until it has
// ended. A connection that breaks is made again and nothing is missed.
func (j *Job) Events(ctx context.Context) iter.Seq2[*JobInfo, error] {
	return func(yield func(*JobInfo, error) bool) {
		last, heard := "", time.Now()
		for quick := 0; ; quick++ {
			ended, err := j.stream(ctx, &last, func(info *JobInfo) bool {
				heard, quick = time.Now(), 0
				return yield(info, nil)
			})
			if ended {
				return
			}
			if err == nil {
				err = lost(ctx, io.ErrUnexpectedEOF)
			}
			if !worthRepeating(err) || time.Since(heard) > j.api.patience() || !j.api.pause(ctx, quick, 0) {
				yield(nil, err)
				return
			}
		}
	}
}

// stream follows one connection. It reports true once no more is wanted.
func (j *Job) stream(ctx context.Context, last *string, yield func(*JobInfo) bool) (ended bool, err error) {
	r := get(j.path()+"/events", nil)
	r.header = http.Header{"Accept": {"text/event-stream"}}
	if *last != "" {
		r.header.Set("Last-Event-Id", *last)
	}
	resp, err := j.api.send(ctx, r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	events := newEventReader(resp.Body, maxEvent)
	for {
		e, err := events.next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, lost(ctx, err)
		}
		if e.name == "error" {
			if failed := decodeFailure(e.data); failed != nil {
				return false, failed
			}
		}
		var info JobInfo
		if err := json.Unmarshal(e.data, &info); err != nil || info.State == "" {
			continue // an event of a later version
		}
		if e.id != "" {
			*last = e.id
		}
		if !yield(&info) || info.State.Terminal() {
			return true, nil
		}
	}
}

// event is one event of a text/event-stream.
type event struct {
	id, name string
	data     []byte
}

// maxEvent bounds the bytes of one line of a job's event.
const maxEvent = 4 << 20

// eventReader reads the format of the WHATWG's "Server-sent events", with line
// ends of LF or CRLF.
type eventReader struct {
	lines *bufio.Scanner
	most  int
	last  string // id of the last event that was complete, also of one without data
}

// newEventReader reads events of which no line has more than so many bytes.
func newEventReader(r io.Reader, most int) *eventReader {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 16<<10), most)
	return &eventReader{lines: lines, most: most}
}

// next returns the next event that has data; io.EOF at the end, where an event
// that is not complete is dropped.
func (r *eventReader) next() (event, error) {
	var e event
	has := false
	for r.lines.Scan() {
		line := bytes.TrimSuffix(r.lines.Bytes(), []byte("\r"))
		if len(line) == 0 {
			if e.id != "" {
				r.last = e.id
			}
			if has {
				return e, nil
			}
			e = event{id: e.id}
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "id":
			e.id = strings.Clone(string(value))
		case "event":
			e.name = string(value)
		case "data":
			if has {
				e.data = append(e.data, '\n')
			}
			e.data, has = append(e.data, value...), true
		}
	}
	if err := r.lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return e, athena.Errorf(athena.CodeInternal, "the server sent an event of more than %d MiB", r.most>>20)
		}
		return e, err
	}
	return e, io.EOF
}
