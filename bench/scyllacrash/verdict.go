package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gocql/gocql"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A batch is what is known of one batch, of a log or of the stream.
type batch struct {
	at   time.Time
	rows int // log rows
	next int // number of the next change in the stream
	done bool
	late bool
}

// verdict waits until the stream has what the logs have, and holds it against them
// and against the tables.
func (s *suite) verdict(ctx context.Context) error {
	time.Sleep(late + time.Second) // what was held back appears
	logs, err := s.logs()
	if err != nil {
		return err
	}
	nc, err := s.rig.Broker(ctx)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.OrderedConsumer(ctx, bus.CDCStream(client), jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return err
	}
	v := &judge{logs: logs, seen: map[string]*batch{}, rows: map[string]map[string]any{}, last: map[string]time.Time{}, value: map[string]float64{}}
	end := time.Now().Add(3 * time.Minute)
	quiet := 0
	for quiet < 12 { // until nothing has come for a while though all is there
		msgs, err := consumer.Fetch(500, jetstream.FetchMaxWait(time.Second))
		if err != nil {
			return err
		}
		n := 0
		for m := range msgs.Messages() {
			n++
			for line := range cdc.Lines(m.Data()) {
				if strings.HasPrefix(string(line), `{"pos":`) {
					v.take(line)
				}
			}
		}
		if n == 0 && v.whole() {
			quiet++
		} else {
			quiet = 0
		}
		if time.Now().After(end) {
			v.wrong("the stream does not come to its end")
			break
		}
	}
	v.missing()
	if err := s.compare(v); err != nil {
		return err
	}
	fmt.Printf("scyllacrash: the stream has %d changes: %d batches of %d in the logs, %d of them late, and %d rows of the snapshot; %d rows in the tables\n",
		v.changes, len(v.seen), len(logs), v.late, v.reads, len(v.rows))
	if len(v.errs) > 0 {
		for _, e := range v.errs[:min(len(v.errs), 20)] {
			fmt.Println("  " + e)
		}
		return fmt.Errorf("%d things are wrong\n%s", len(v.errs), s.rig.Logs())
	}
	if v.late == 0 {
		return errors.New("no write was late: that was not shown")
	}
	fmt.Println("scyllacrash: nothing is lost, nothing is there twice, and all is in its order")
	return nil
}

// logs reads the batches of all logs.
func (s *suite) logs() (map[string]*batch, error) {
	list := map[string]*batch{}
	for _, t := range tables {
		iter := s.session.Query(`SELECT "cdc$stream_id", "cdc$time", "cdc$operation" FROM ` + t + `_scylla_cdc_log`).Iter()
		var stream []byte
		var at gocql.UUID
		var op int8
		for iter.Scan(&stream, &at, &op) {
			if op == 7 || op == 8 {
				continue // the end of a range is no change of its own
			}
			id := fmt.Sprintf("%s 0x%x:%s", t, stream, at)
			if list[id] == nil {
				list[id] = &batch{at: at.Time()}
			}
			list[id].rows++
		}
		if err := iter.Close(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// A judge reads the stream.
type judge struct {
	logs, seen    map[string]*batch
	rows          map[string]map[string]any // by table and key
	pos           cdc.Position
	last          map[string]time.Time // of streams
	value         map[string]float64   // of v, by row
	changes, late int
	reads         int
	errs          []string
}

func (v *judge) wrong(format string, args ...any) {
	v.errs = append(v.errs, fmt.Sprintf(format, args...))
}

func (v *judge) take(line []byte) {
	var c cdc.Change
	if err := cdc.Decode(line, &c); err != nil {
		v.wrong("%s: %v", line, err)
		return
	}
	if c.Pos <= v.pos {
		v.wrong("%s follows %s", c.Pos, v.pos)
	}
	v.pos = c.Pos
	v.changes++
	if c.Op == cdc.Schema || c.Op == cdc.Message || c.Op == cdc.Truncate {
		return
	}
	v.fold(&c)
	if c.Tx == nil {
		v.reads++
		return
	}
	id := c.Schema + "." + c.Table + " " + c.Tx.ID
	b := v.seen[id]
	if b == nil {
		b = &batch{at: c.Tx.At, next: 1, late: c.Late}
		v.seen[id] = b
		if c.Late {
			v.late++
		}
	}
	switch {
	case b.done:
		v.wrong("batch %s has a change behind its last, at %s", id, c.Pos)
	case int(c.Tx.N) != b.next:
		v.wrong("batch %s has change %d in the place of %d, at %s", id, c.Tx.N, b.next, c.Pos)
	}
	b.next++
	b.done = c.Tx.Last
	if b.late {
		return
	}
	stream, _, _ := strings.Cut(id, ":")
	if c.Tx.At.Before(v.last[stream]) {
		v.wrong("batch %s is behind one that is younger, at %s", id, c.Pos)
	}
	v.last[stream] = c.Tx.At
	// What one writer has written to one row comes in its order.
	var after struct {
		V *float64 `json:"v"`
	}
	if err := json.Unmarshal([]byte(cmp.Or(string(c.After), `{}`)), &after); err == nil && after.V != nil {
		row := c.Schema + "." + c.Table + string(c.Key)
		if *after.V < v.value[row] {
			v.wrong("row %s has %v behind %v, at %s", row, *after.V, v.value[row], c.Pos)
		}
		v.value[row] = *after.V
	}
}

// fold keeps the rows as somebody would who applies the changes by key.
func (v *judge) fold(c *cdc.Change) {
	table := c.Schema + "." + c.Table
	var key map[string]any
	if err := json.Unmarshal(c.Key, &key); err != nil {
		v.wrong("%s: %v", c.Pos, err)
		return
	}
	row := fmt.Sprintf("%s %v", table, key)
	switch c.Op {
	case cdc.Insert, cdc.Update, cdc.Read:
		var after map[string]any
		if err := json.Unmarshal(c.After, &after); err != nil {
			v.wrong("%s: %v", c.Pos, err)
			return
		}
		if v.rows[row] == nil {
			v.rows[row] = map[string]any{}
		}
		maps.Copy(v.rows[row], after)
	case cdc.Delete:
		delete(v.rows, row)
	case cdc.DeleteRange: // those of this suite: ck > 2
		for name, r := range v.rows {
			if strings.HasPrefix(name, table+" ") && r["pk"] == key["pk"] && r["ck"].(float64) > 2 {
				delete(v.rows, name)
			}
		}
	default:
		v.wrong("%s is a %s", c.Pos, c.Op)
	}
}

// whole reports whether the end of every batch was seen that the logs have since
// the capture began.
func (v *judge) whole() bool {
	if len(v.seen) == 0 {
		return false
	}
	begin := v.begin()
	for id, b := range v.logs {
		if seen := v.seen[id]; !b.at.Before(begin) && (seen == nil || !seen.done) {
			return false
		}
	}
	return true
}

// begin is the time of the first batch of the stream: what is older was there
// before.
func (v *judge) begin() (at time.Time) {
	for _, b := range v.seen {
		if !b.late && (at.IsZero() || b.at.Before(at)) {
			at = b.at
		}
	}
	return at
}

func (v *judge) missing() {
	begin := v.begin()
	for _, id := range slices.Sorted(maps.Keys(v.logs)) {
		b, seen := v.logs[id], v.seen[id]
		switch {
		case b.at.Before(begin) && seen == nil:
		case seen == nil:
			v.wrong("batch %s of %s is lost", id, b.at)
		case !seen.done:
			v.wrong("batch %s has no last change", id)
		case seen.next-1 != b.rows && !seen.late, seen.next-1 < b.rows:
			v.wrong("batch %s has %d changes, and %d in the log", id, seen.next-1, b.rows)
		}
	}
	for id := range v.seen {
		if v.logs[id] == nil {
			v.wrong("batch %s is in no log", id)
		}
	}
}

// compare holds the rows that the changes make against the tables.
func (s *suite) compare(v *judge) error {
	there := map[string]bool{}
	for _, t := range tables {
		iter := s.session.Query(`SELECT pk, ck, v, w FROM ` + t).Iter()
		var pk, ck int
		var value int64
		var w string
		for iter.Scan(&pk, &ck, &value, &w) {
			row := fmt.Sprintf("%s %v", t, map[string]any{"pk": pk, "ck": ck})
			there[row] = true
			got := v.rows[row]
			if got == nil {
				v.wrong("row %s is not in the stream", row)
				continue
			}
			if got["v"] != float64(value) || got["w"] != w {
				v.wrong("row %s is %v, and %d %q in the table", row, got, value, w)
			}
		}
		if err := iter.Close(); err != nil {
			return err
		}
	}
	for row := range v.rows {
		if !there[row] {
			v.wrong("row %s is in the stream, and not in its table", row)
		}
	}
	if len(there) == 0 {
		return errors.New("the tables are empty: nothing was shown")
	}
	return nil
}
