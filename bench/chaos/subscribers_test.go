package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/bench/judge"
	"github.com/athena-pipelines/athena/bench/rig"
)

// subscribers are scenarios of those who read through Athena: what they have
// had, one after the other, is judged as the stream itself is.
func subscribers() []scenario {
	return []scenario{
		{
			name: "a subscriber that resumes by its cursor has each change once, whoever breaks the connection",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{Large: true})
				s.subscribed(stop, func(ctx context.Context, last judge.Token, line func([]byte) bool) {
					cursor := ""
					for ctx.Err() == nil {
						// He goes himself, in the midst of anything, if nobody else ends it.
						sctx, cancel := context.WithTimeout(ctx, time.Duration(300+s.rnd.IntN(1500))*time.Millisecond)
						done := s.events(sctx, &cursor, line)
						cancel()
						if done {
							return
						}
					}
				})
			},
		},
		{
			name: "a subscription that is pulled and acknowledged has each change once, whatever is lost on the way",
			run: func(s *stage) {
				s.enable(nil)
				stop := s.load(Load{})
				s.call(http.MethodPost, "/cdc/"+client+"/subscriptions", setup{"name": "puller", "from": "earliest", "deliver": "pull"})
				s.subscribed(stop, s.pull)
			},
		},
	}
}

// subscribed runs a reader beside the load, while the server and the workers are
// killed, and judges what it has had.
//
// Within the answer to a pull, values in JSON lose the blanks between their
// tokens; so the columns of that type are compared by what they say.
func (s *stage) subscribed(stop func(), reader func(ctx context.Context, last judge.Token, line func([]byte) bool)) {
	s.Helper()
	j, err := judge.New(s.ctx, judge.Config{Client: client, Replica: s.replica, Object: s.download})
	s.check(err)
	defer j.Close(context.WithoutCancel(s.ctx))
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var last judge.Token
	ready := make(chan struct{}) // last is known
	var bad error
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		reader(ctx, last, func(raw []byte) (done bool) {
			if bad = j.Line(ctx, raw); bad != nil {
				cancel()
			}
			select {
			case <-ready:
				return j.Arrived(last)
			default:
				return false
			}
		})
	}()
	for range choose(3, 8) {
		s.rest(time.Duration(1000+s.rnd.IntN(2000)) * time.Millisecond)
		s.restart(s.rig.Server)
		s.check(s.rig.Ready(s.ctx))
	}
	s.advances(time.Minute)
	stop()
	last, err = s.main.Mark(s.ctx)
	s.check(err)
	close(ready)
	select {
	case <-finished:
	case <-time.After(time.Minute):
		s.Errorf("the reader did not come to the last change\n%s", s.logs())
		cancel()
		<-finished
	}
	s.check(bad)
	s.check(j.Flush(s.ctx))
	for _, dsn := range []string{s.rig.DSN(), s.replica} {
		s.execOn(dsn, "update kinds set js = js::jsonb::text::json")
	}
	problems, err := j.Verdict(s.ctx, s.rig.DSN(), s.tables, &s.source.Ledger)
	if err != nil || len(problems) > 0 {
		s.Errorf("seed %d: %v\n%s\n%s", s.seed, err, strings.Join(problems, "\n"), s.logs())
	}
	s.note("%d changes judged %v, %d values from the object store, of transactions %s", j.Changes, j.Ops, j.Refs, s.source.Did())
	s.Logf("%.0f s: %s", time.Since(s.begun).Seconds(), strings.Join(s.notes, "; "))
}

// request makes a request that may stay open.
func (s *stage) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.rig.URL+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("Authorization", "Bearer "+rig.AdminKey)
	return http.DefaultClient.Do(req)
}

// events reads server-sent events until the stream ends, and moves the cursor
// with each id. A change counts as had with the blank line behind it.
func (s *stage) events(ctx context.Context, cursor *string, line func([]byte) bool) (done bool) {
	header := http.Header{"Accept": {"text/event-stream"}}
	if *cursor != "" {
		header.Set("Last-Event-ID", *cursor)
	}
	resp, err := s.get(ctx, "/cdc/"+client+"/stream?from=earliest", header)
	if err != nil {
		time.Sleep(50 * time.Millisecond)
		return false
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if raw, _ := io.ReadAll(resp.Body); resp.StatusCode < 500 {
			s.Errorf("the stream behind %q is answered %s: %s", *cursor, resp.Status, raw)
			return true
		}
		time.Sleep(50 * time.Millisecond)
		return false
	}
	var id, event string
	var data []byte
	for r := bufio.NewReaderSize(resp.Body, 64<<10); ; {
		raw, err := r.ReadBytes('\n')
		if err != nil {
			return false
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(raw, "\n"), []byte(": "))
		switch string(name) {
		case "id":
			id = string(value)
		case "event":
			event = string(value)
		case "data":
			data = value
		case "":
			if len(raw) > 1 { // a comment
				continue
			}
			if id != "" {
				*cursor = id
			}
			switch {
			case event == "error":
				s.Logf("the stream ends with %s", data)
			case data != nil && line(data):
				return true
			}
			id, event, data = "", "", nil
		}
	}
}

// pull takes batches, and acknowledges them. An acknowledgement without an answer
// is made again; a batch that was not acknowledged has to come again as it was.
func (s *stage) pull(ctx context.Context, _ judge.Token, line func([]byte) bool) {
	type batch struct {
		Changes []json.RawMessage `json:"changes"`
		Cursor  string            `json:"cursor"`
	}
	var dropped *batch
	for n := 0; ctx.Err() == nil; n++ {
		code, reply, err := s.rig.Call(http.MethodGet, "/cdc/"+client+"/subscriptions/puller/changes?max=300&wait=2s", "", nil)
		if err != nil || code >= 500 {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		var b batch
		if err := json.Unmarshal(reply.Data, &b); err != nil || code != http.StatusOK {
			s.Errorf("a pull is answered %d %s: %v", code, reply.Message, err)
			return
		}
		if dropped != nil {
			same := len(b.Changes) >= len(dropped.Changes)
			for i := range dropped.Changes {
				same = same && bytes.Equal(b.Changes[i], dropped.Changes[i])
			}
			if !same {
				s.Errorf("a batch that was not acknowledged came again with other changes")
			}
			dropped = nil
		}
		if s.rnd.IntN(5) == 0 { // the reader dies with it
			dropped = &b
			continue
		}
		for acked := false; !acked && ctx.Err() == nil; {
			code, reply, err := s.rig.Call(http.MethodPost, "/cdc/"+client+"/subscriptions/puller/ack", "", map[string]string{"cursor": b.Cursor})
			switch {
			case err != nil || code >= 500 || code == http.StatusConflict && strings.Contains(reply.Message, "meanwhile"):
				time.Sleep(50 * time.Millisecond)
			case code >= 300:
				s.Errorf("an acknowledgement is answered %d %s", code, reply.Message)
				return
			default:
				acked = true
			}
		}
		for _, raw := range b.Changes {
			if line(raw) {
				return
			}
		}
	}
}

// download fetches a value that was too large for a change, as a subscriber does.
func (s *stage) download(ctx context.Context, name string) ([]byte, error) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		resp, err := s.get(ctx, "/cdc/"+client+"/objects/"+url.PathEscape(name), http.Header{})
		if err == nil {
			var raw []byte
			raw, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK {
				return raw, nil
			}
			err = fmt.Errorf("%s: %.200s: %w", resp.Status, raw, err)
		}
		if time.Now().After(end) {
			return nil, err
		}
	}
}
