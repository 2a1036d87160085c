package scyllatest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

// A Request is what a client asks for, as a fault looks at it.
type Request struct {
	Op          string // PREPARE, QUERY, EXECUTE, BATCH
	CQL         string // of a batch, that of its statements
	Page        int    // 0 for the first
	Node        string // address of the node that was asked
	Consistency string
	Serial      string
	User        string
}

// Containing matches requests to run what has text in it; not those to prepare it.
func Containing(text string) func(Request) bool {
	return func(r Request) bool { return r.Op != "PREPARE" && strings.Contains(r.CQL, text) }
}

// A Fault is what goes wrong with a request.
type Fault struct {
	reply message.Message
	drop  bool
	after bool // the request takes effect first
	delay time.Duration
}

// After lets the request take effect before the fault shows.
func (f Fault) After() Fault { f.after = true; return f }

// Overloaded refuses for load.
func Overloaded() Fault {
	return Fault{reply: &message.Overloaded{ErrorMessage: "Too many in flight hints or requests"}}
}

// Unavailable refuses for want of replicas.
func Unavailable() Fault {
	return Fault{reply: &message.Unavailable{ErrorMessage: "Cannot achieve consistency level for cl QUORUM. Requires 2, alive 1", Consistency: primitive.ConsistencyLevelQuorum, Required: 2, Alive: 1}}
}

// ReadTimeout answers that replicas did not.
func ReadTimeout() Fault {
	return Fault{reply: &message.ReadTimeout{ErrorMessage: "Operation timed out - received only 1 responses from 2 CL=QUORUM.", Consistency: primitive.ConsistencyLevelQuorum, Received: 1, BlockFor: 2}}
}

// WriteTimeout answers that too few replicas confirmed a write of a type: SIMPLE,
// BATCH, UNLOGGED_BATCH, COUNTER, BATCH_LOG, CAS.
func WriteTimeout(writeType string) Fault {
	return Fault{reply: &message.WriteTimeout{ErrorMessage: "Operation timed out - received only 1 responses from 2 CL=QUORUM.", Consistency: primitive.ConsistencyLevelQuorum, Received: 1, BlockFor: 2, WriteType: primitive.WriteType(writeType)}}
}

// ReadFailure answers that replicas failed.
func ReadFailure() Fault {
	return Fault{reply: &message.ReadFailure{ErrorMessage: "Operation failed - received 1 responses and 1 failures from 2 CL=QUORUM.", Consistency: primitive.ConsistencyLevelQuorum, Received: 1, BlockFor: 2, NumFailures: 1}}
}

// WriteFailure answers that replicas failed.
func WriteFailure(writeType string) Fault {
	return Fault{reply: &message.WriteFailure{ErrorMessage: "Operation failed - received 1 responses and 1 failures from 2 CL=QUORUM.", Consistency: primitive.ConsistencyLevelQuorum, Received: 1, BlockFor: 2, NumFailures: 1, WriteType: primitive.WriteType(writeType)}}
}

// CASUnknown answers that it is not known whether a conditional write was applied.
func CASUnknown() Fault {
	return Fault{reply: &casUnknown{text: "CAS operation result is unknown - proposal was not accepted by a quorum.", received: 1, blockFor: 2}}
}

// ServerError answers that something broke.
func ServerError(text string) Fault { return Fault{reply: &message.ServerError{ErrorMessage: text}} }

// Invalid answers that the statement is not valid.
func Invalid(text string) Fault { return Fault{reply: &message.Invalid{ErrorMessage: text}} }

// Dropped ends the connection without an answer.
func Dropped() Fault { return Fault{drop: true} }

// Slow answers late.
func Slow(d time.Duration) Fault { return Fault{delay: d} }

type watch struct {
	mu       sync.Mutex
	rules    []*rule
	seen     map[string]int
	unknown  []string
	expected []string
}

type rule struct {
	match func(Request) bool
	fault Fault
	left  int
	hits  int
}

// Fail has the next requests that match go wrong, so many times; a negative number
// is always. It returns how often that has happened. match is called by one request at
// a time, and must not call the cluster.
func (c *Cluster) Fail(match func(Request) bool, f Fault, times int) (hits func() int) {
	r := &rule{match: match, fault: f, left: times}
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	c.watch.rules = append(c.watch.rules, r)
	return func() int {
		c.watch.mu.Lock()
		defer c.watch.mu.Unlock()
		return r.hits
	}
}

// Heal ends all faults.
func (c *Cluster) Heal() {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	c.watch.rules = nil
}

// note writes a request into the ledger, and gives the fault that it is to have.
func (c *Cluster) note(r Request) *Fault {
	w := &c.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Op != "EXECUTE" {
		if w.seen == nil {
			w.seen = map[string]int{}
		}
		w.seen[r.Op+" "+r.CQL]++
	}
	for _, x := range w.rules {
		if x.left != 0 && x.match(r) {
			x.left--
			x.hits++
			f := x.fault
			return &f
		}
	}
	return nil
}

// A Seen statement was sent by clients so many times.
type Seen struct {
	Statement string // "PREPARE …", "QUERY …", "BATCH …"
	Count     int
}

// Statements is the ledger of what clients sent, in the order of its text. What was
// prepared is there once for each time that it was, whatever became of it.
func (c *Cluster) Statements() []Seen {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	var list []Seen
	for _, s := range slices.Sorted(maps.Keys(c.watch.seen)) {
		list = append(list, Seen{s, c.watch.seen[s]})
	}
	return list
}

// Unknown lists the statements that the double did not know and nobody expected.
func (c *Cluster) Unknown() []string {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.watch.unknown), func(u string) bool {
		return slices.ContainsFunc(c.watch.expected, func(x string) bool { return strings.Contains(u, x) })
	})
}

// ExpectUnknown says that statements with text in them are not known on purpose.
func (c *Cluster) ExpectUnknown(text string) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	c.watch.expected = append(c.watch.expected, text)
}

func (c *Cluster) record(cql string, e syntaxError) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	c.watch.unknown = append(c.watch.unknown, cmp.Or(cql, "?")+": "+string(e))
}

// unknown is the error for what the double does not know.
func (c *Cluster) unknown(format string, args ...any) syntaxError {
	return syntax("the double does not know %s", fmt.Sprintf(format, args...))
}
