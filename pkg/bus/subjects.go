package bus

import (
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Any stands for every value of a token in a filter. It alone is not escaped, so
// names from outside are checked before they come here.
const Any = "*"

// JobSubject is where a job is accepted.
func JobSubject(lane, engine, client, id string) string {
	return join("ath.job", lane, engine, client, id)
}

// JobAny matches the acceptance of a client's job, whatever its lane and engine;
// either may be Any. That a job is accepted once is an expectation on it.
func JobAny(client, id string) string { return JobSubject(Any, Any, client, id) }

// JobWake is where a job is woken up.
func JobWake(lane, engine, client, id string) string {
	return JobSubject(lane, engine, client, id) + ".wake"
}

// JobWakeAny matches the wake-ups of a client's job.
func JobWakeAny(client, id string) string { return JobAny(client, id) + ".wake" }

// JobSchedule is where the next wake-up of a job is scheduled.
func JobSchedule(client, id string) string { return join("ath.jobsched", client, id) }

// JobLane matches the jobs of one lane of a client, and their wake-ups.
func JobLane(lane, client string) string { return join("ath.job", lane, Any, client) + ".>" }

// LaneConsumer names the durable consumer of a lane of a client. Lanes hold no
// "-", so no two pairs share a name.
func LaneConsumer(lane, client string) string { return "job-" + Escape(lane) + "-" + Escape(client) }

// ParseJob reads the subject of a job's acceptance or of a wake-up.
func ParseJob(subject string) (lane, engine, client, id string, ok bool) {
	t, ok := split(strings.TrimSuffix(subject, ".wake"), "ath.job", 4)
	if !ok {
		return "", "", "", "", false
	}
	return t[0], t[1], t[2], t[3], true
}

// JobID takes the job's id out of the subject of its acceptance or a wake-up;
// empty if it is another subject.
func JobID(subject string) string {
	_, _, _, id, _ := ParseJob(subject)
	return id
}

// JobEvent is where a job's status is written.
func JobEvent(client, id string) string { return join("ath.jobev", client, id) }

// JobHook is where the order to announce a job's end is written; JobHookWake and
// JobHookSchedule carry its retries.
func JobHook(client, id string) string         { return join("ath.jobhook", client, id) }
func JobHookWake(client, id string) string     { return JobHook(client, id) + ".wake" }
func JobHookSchedule(client, id string) string { return join("ath.jobhooksched", client, id) }

// Result is where a chunk of a segment of a job's result is stored; run is the
// attempt that stores it.
func Result(client, id string, run, segment, chunk int) string {
	return join("ath.result", client, id, strconv.Itoa(run), strconv.Itoa(segment), strconv.Itoa(chunk))
}

// ResultAny matches all chunks of a job's results.
func ResultAny(client, id string) string { return join("ath.result", client, id) + ".>" }

// HeaderCause bears on a dead letter, in a line, why it is one.
const HeaderCause = "Ath-Cause"

// Dead is where a dead letter of a kind ("job", "hook" …) and owner is put.
func Dead(kind, owner string) string { return join("ath.dead", kind, owner) }

// Rejected is where a row is kept that a pipeline could not take on; row names it
// within the run, or within the pipeline where run is "stream".
func Rejected(pipeline, run, row string) string { return join("ath.rejected", pipeline, run, row) }

// RejectedAny matches all rows of a pipeline, or of one of its runs; run may be
// Any.
func RejectedAny(pipeline, run string) string { return join("ath.rejected", pipeline, run) + ".>" }

// Ops is where operations of an owner, a client or "_", are logged.
func Ops(owner, family string) string { return join("ath.ops", owner, family) }

// CancelHint is the core-NATS subject that tells workers of a cancellation.
func CancelHint(id string) string { return join("ath.ctl.cancel", id) }

// CancelHintID takes the job's id out of a cancel hint; empty if it is none.
func CancelHintID(subject string) string {
	if t, ok := split(subject, "ath.ctl.cancel", 1); ok {
		return t[0]
	}
	return ""
}

// QueryRequest is the core-NATS subject of synchronous queries for a client.
func QueryRequest(client string) string { return join("ath.query", client) }

// CDCStream names the stream of a client's changes.
func CDCStream(client string) string { return "CDC_" + Escape(client) }

// CDCObjects names the object store for values of a client's changes that are
// too large for a message.
func CDCObjects(client string) string { return "cdc_" + Escape(client) }

// CDC is where changes of a table are stored. Messages of the log, which belong
// to no table, have both names empty.
func CDC(client, schema, table string) string { return join("ath.cdc", client, schema, table) }

// CDCSchema is where changes of a table's columns are stored, so that the last
// one can be asked for.
func CDCSchema(client, schema, table string) string {
	return CDC(client, schema, table) + ".schema"
}

// CDCAll matches everything in a client's stream of changes.
func CDCAll(client string) string { return join("ath.cdc", client) + ".>" }

// ParseCDC reads the subject of changes, or of a change of columns.
func ParseCDC(subject string) (client, schema, table string, columns, ok bool) {
	t, ok := split(subject, "ath.cdc", 3) // a table may be called "schema"
	if !ok {
		if t, columns = split(strings.TrimSuffix(subject, ".schema"), "ath.cdc", 3); !columns {
			return "", "", "", false, false
		}
	}
	return t[0], t[1], t[2], columns, true
}

// CDCSnapshot is where the progress of a snapshot is stored, in the stream that
// has its rows.
func CDCSnapshot(client, id string) string { return join("ath.cdcsnap", client, id) }

// CDCHint is the core-NATS subject that tells readers of new changes.
func CDCHint(client string) string { return join("ath.ctl.cdc", client) }

// ParseCDCHint takes the client out of the subject of a hint; empty if it is none.
func ParseCDCHint(subject string) string {
	if t, ok := split(subject, "ath.ctl.cdc", 1); ok {
		return t[0]
	}
	return ""
}

// ParseJobEvent reads the subject of a job's status.
func ParseJobEvent(subject string) (client, id string, ok bool) { return pair(subject, "ath.jobev") }

// ParseJobHook reads the subject of a webhook order or of its wake-up.
func ParseJobHook(subject string) (client, id string, ok bool) {
	return pair(strings.TrimSuffix(subject, ".wake"), "ath.jobhook")
}

// ParseResult reads the subject of a chunk.
func ParseResult(subject string) (client, id string, run, segment, chunk int, ok bool) {
	t, ok := split(subject, "ath.result", 5)
	if !ok {
		return "", "", 0, 0, 0, false
	}
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(t[2+i]); err != nil {
			return "", "", 0, 0, 0, false
		}
	}
	return t[0], t[1], n[0], n[1], n[2], true
}

// ParseDead reads the subject of a dead letter.
func ParseDead(subject string) (kind, owner string, ok bool) { return pair(subject, "ath.dead") }

// ParseOps reads the subject of an operation.
func ParseOps(subject string) (owner, family string, ok bool) { return pair(subject, "ath.ops") }

// Schedule returns a message that has the server publish to target, a subject of
// the same stream, at the given time. The time is rounded up to a whole second:
// the server cuts fractions off and would fire early. A later schedule on the
// same subject replaces one that has not fired. The target gets the body that
// the caller sets.
func Schedule(subject, target string, at time.Time) *nats.Msg {
	if cut := at.Truncate(time.Second); cut.Before(at) {
		at = cut.Add(time.Second)
	}
	msg := nats.NewMsg(subject)
	msg.Header.Set(jetstream.ScheduleHeader, "@at "+at.UTC().Format(time.RFC3339))
	msg.Header.Set(jetstream.ScheduleTargetHeader, target)
	return msg
}

// TTL writes a time to live as the Nats-TTL header takes it: whole seconds,
// rounded up, at least one.
func TTL(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10) + "s"
}

func join(prefix string, tokens ...string) string {
	var b strings.Builder
	b.WriteString(prefix)
	for _, t := range tokens {
		b.WriteByte('.')
		if t != Any {
			t = Escape(t)
		}
		b.WriteString(t)
	}
	return b.String()
}

// split returns the n tokens after prefix, unescaped.
func split(subject, prefix string, n int) ([]string, bool) {
	rest, ok := strings.CutPrefix(subject, prefix+".")
	if !ok {
		return nil, false
	}
	tokens := strings.Split(rest, ".")
	if len(tokens) != n {
		return nil, false
	}
	for i := range tokens {
		if tokens[i], ok = Unescape(tokens[i]); !ok {
			return nil, false
		}
	}
	return tokens, true
}

func pair(subject, prefix string) (a, b string, ok bool) {
	t, ok := split(subject, prefix, 2)
	if !ok {
		return "", "", false
	}
	return t[0], t[1], true
}

const hexDigits = "0123456789ABCDEF"

// Escape makes any text one token of a subject, of a KV key or of a consumer's
// name, reversibly: letters, digits, '-' and '_' stay, each other byte becomes
// "=" and two hex digits; the empty text becomes "=".
func Escape(s string) string {
	if s == "" {
		return "="
	}
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	b := append(make([]byte, 0, len(s)+8), s[:i]...)
	for ; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '=', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

// Unescape reads what Escape wrote; false if it could not have.
func Unescape(t string) (string, bool) {
	if t == "=" {
		return "", true
	}
	b := make([]byte, 0, len(t))
	for i := 0; i < len(t); i++ {
		if t[i] != '=' {
			b = append(b, t[i])
			continue
		}
		if i+2 >= len(t) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, t[i+1]), strings.IndexByte(hexDigits, t[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	s := string(b)
	return s, s != "" && Escape(s) == t
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}
