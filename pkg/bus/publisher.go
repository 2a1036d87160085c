package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/pkg/athena"
)

var (
	// ErrWrongSequence: the expectation that the message carried does not hold.
	// Nothing was stored.
	ErrWrongSequence = errors.New("bus: the expected last sequence is another")
	// ErrFull: the stream, or the server's storage, is full. Nothing was stored.
	ErrFull = errors.New("bus: the stream is full")
	// ErrAmbiguous: there was no answer. The message may be stored, or may be
	// stored in a moment; read before doing anything that must not be done twice.
	ErrAmbiguous = errors.New("bus: it is not known whether the message was stored")
)

// Headers of atomic batches, see ADR-50 of NATS.
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

const (
	// batchMost is the server's limit on the messages of a batch.
	batchMost = 1000
	// batchBytes bounds what a batch takes to the server at once.
	batchBytes = 4 << 20
	// batchLeast is from how many waiting messages on a batch is faster than as
	// many publishes at once. A batch costs 3 to 4 ms however small it is, since
	// the server stages it in a file of its own; a plain publish costs one sync,
	// 0.2 ms (BenchmarkBatch on two cores and a virtual disk).
	batchLeast = 16
	// publishTimeout bounds one publish, with the time that a cluster takes to
	// choose a leader.
	publishTimeout = 10 * time.Second
	// answerTimeout bounds the wait for the answer to what was sent.
	answerTimeout = 5 * time.Second
	// patience is after which time of silence the next flush begins. A stream
	// whose leader is gone does not answer what was sent to it.
	patience = 250 * time.Millisecond
)

// Publisher stores messages in one stream. Callers that publish at the same time
// share the cost of a sync: one alone is sent at once, and those that come while
// it is under way go together, as an atomic batch if they are many. Each still
// gets the verdict that it would have got alone.
//
// It is safe for concurrent use. The order of messages that are published at the
// same time is not defined.
type Publisher struct {
	nc     *nats.Conn
	stream string
	room   *room // nil if the stream itself has a limit

	mu    sync.Mutex
	busy  bool
	queue []*waiting
}

type waiting struct {
	msgs []*nats.Msg  // one, or several of one subject in their order
	done chan verdict // takes one verdict without blocking
}

func (w *waiting) size() (n int) {
	for _, m := range w.msgs {
		n += m.Size()
	}
	return n
}

type verdict struct {
	seq uint64
	err error
}

// NewPublisher returns a publisher to a stream of b.
func NewPublisher(b *Bus, stream string) *Publisher {
	p := &Publisher{nc: b.nc, stream: stream}
	if stream == StreamJobs {
		p.room = &room{bus: b, most: b.jobsMost()}
	}
	return p
}

// Publish stores msg and returns its sequence in the stream. Expectations in its
// headers are held against the stream at the moment of storing. The error wraps
// ErrWrongSequence, ErrFull or ErrAmbiguous, or has the code payload_too_large or
// bus_unavailable; with all but ErrAmbiguous nothing was stored. A context that
// ends while the message is under way gives ErrAmbiguous, before that its own
// error.
func (p *Publisher) Publish(ctx context.Context, msg *nats.Msg) (uint64, error) {
	return p.publish(ctx, []*nats.Msg{msg})
}

// PublishInOrder stores messages of one subject one after the other, each only
// if the one before it was stored and nothing came between, and returns the
// sequence of the last. An expectation of the first holds for all; the others
// must have none. After an error a first part of them may be stored. Errors are
// those of Publish.
func (p *Publisher) PublishInOrder(ctx context.Context, msgs ...*nats.Msg) (uint64, error) {
	for _, m := range msgs[1:] {
		if m.Subject != msgs[0].Subject || expectation(m) != "" {
			return 0, fmt.Errorf("bus: messages in order have one subject, and only the first has an expectation")
		}
	}
	return p.publish(ctx, msgs)
}

func (p *Publisher) publish(ctx context.Context, msgs []*nats.Msg) (uint64, error) {
	for _, m := range msgs {
		if err := p.admit(ctx, m); err != nil {
			return 0, err
		}
	}
	p.mu.Lock()
	if !p.busy {
		p.busy = true
		p.mu.Unlock()
		defer p.turn()()
		return p.sendInOrder(ctx, msgs)
	}
	w := &waiting{msgs: msgs, done: make(chan verdict, 1)}
	p.queue = append(p.queue, w)
	p.mu.Unlock()

	select {
	case v := <-w.done:
		return v.seq, v.err
	case <-ctx.Done():
		if p.withdraw(w) {
			return 0, ctx.Err()
		}
		return 0, ambiguous(p.stream, ctx.Err())
	}
}

func (p *Publisher) admit(ctx context.Context, msg *nats.Msg) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if size, most := int64(msg.Size()), p.nc.MaxPayload(); most > 0 && size > most-headerRoom {
		return athena.Errorf(athena.CodePayloadTooLarge, "a message of %d bytes is too large for the bus, which carries at most %d", size, most-headerRoom)
	}
	if p.room != nil && isAcceptance(msg.Subject) {
		return p.room.check(ctx)
	}
	return nil
}

// headerRoom is left for the headers of a batch.
const headerRoom = 256

func isAcceptance(subject string) bool {
	return strings.HasPrefix(subject, "ath.job.") && !strings.HasSuffix(subject, ".wake")
}

func (p *Publisher) withdraw(w *waiting) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.queue, w)
	if i < 0 {
		return false
	}
	p.queue = slices.Delete(p.queue, i, i+1)
	return true
}

// turn begins a flush and returns what ends it: then the next one begins. One
// that the server is slow to answer does not hold up those after it.
func (p *Publisher) turn() (end func()) {
	next := sync.OnceFunc(p.next)
	slow := time.AfterFunc(patience, next)
	return func() {
		slow.Stop()
		next()
	}
}

// next sends what has gathered, if anything has.
func (p *Publisher) next() {
	p.mu.Lock()
	batch, alone := p.take()
	p.mu.Unlock()
	if len(batch)+len(alone) > 0 {
		go p.flush(batch, alone) // bounded in time; those who wait wait for it
	}
}

func (p *Publisher) flush(batch, alone []*waiting) {
	defer p.turn()()
	var wg sync.WaitGroup
	for _, w := range alone {
		wg.Go(func() { p.sendAlone(w) })
	}
	if len(batch) > 0 {
		p.sendTogether(batch)
	}
	wg.Wait()
}

// take takes the messages that go next out of the queue: a batch, and those that
// go by themselves. With nothing to take, the publisher is no longer busy. The
// lock is held.
func (p *Publisher) take() (batch, alone []*waiting) {
	var left []*waiting
	if count(p.queue) >= batchLeast {
		batch, alone, left = p.split()
	}
	if count(batch) < batchLeast { // by themselves, messages are never in conflict
		batch, alone, left = nil, p.queue, nil
	}
	p.queue = left
	p.busy = len(batch)+len(alone) > 0
	return batch, alone
}

// count counts the messages of a queue.
func count(queue []*waiting) (n int) {
	for _, w := range queue {
		n += len(w.msgs)
	}
	return n
}

// split parts the queue into a batch, those that may not be in one, and those
// that have to wait for the next. The lock is held.
func (p *Publisher) split() (batch, alone, left []*waiting) {
	var (
		c       claims
		n, size int
	)
	for _, w := range p.queue {
		switch {
		case solitary(w.msgs[0]):
			alone = append(alone, w)
		case n+len(w.msgs) > batchMost, size+w.size() > batchBytes && n > 0, !c.add(w.msgs...):
			left = append(left, w)
		default:
			batch = append(batch, w)
			n, size = n+len(w.msgs), size+w.size()
		}
	}
	return batch, alone, left
}

func (p *Publisher) sendAlone(w *waiting) {
	seq, err := p.sendInOrder(context.Background(), w.msgs)
	w.done <- verdict{seq, err}
}

// sendInOrder publishes messages of one subject, one after the other.
func (p *Publisher) sendInOrder(ctx context.Context, msgs []*nats.Msg) (uint64, error) {
	seq, err := p.send(ctx, msgs[0])
	for _, m := range msgs[1:] {
		if err != nil {
			return 0, err
		}
		m = &nats.Msg{Subject: m.Subject, Data: m.Data, Header: maps.Clone(m.Header)}
		if m.Header == nil {
			m.Header = nats.Header{}
		}
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(seq, 10))
		seq, err = p.send(ctx, m)
	}
	return seq, err
}

func (p *Publisher) sendTogether(batch []*waiting) {
	msgs := make([]*nats.Msg, 0, count(batch))
	for _, w := range batch {
		msgs = append(msgs, w.msgs...)
	}
	last, err := p.sendBatch(context.Background(), msgs)
	var refusal *jetstream.APIError
	if errors.As(err, &refusal) {
		// One member is enough to have all refused. Each gets its own verdict.
		var wg sync.WaitGroup
		for _, w := range batch {
			wg.Go(func() { p.sendAlone(w) })
		}
		wg.Wait()
		return
	}
	seq := last - uint64(len(msgs))
	for _, w := range batch {
		seq += uint64(len(w.msgs))
		w.done <- verdict{seq, err}
	}
}

// PublishAtomic stores all messages, next to each other, or none, and returns
// the sequence of the last. Expectations are held against the stream as it was
// before the batch: a message may not have one on a subject that an earlier one
// writes to. Errors are those of Publish.
func (p *Publisher) PublishAtomic(ctx context.Context, msgs []*nats.Msg) (uint64, error) {
	if len(msgs) == 0 || len(msgs) > batchMost {
		return 0, fmt.Errorf("bus: an atomic batch has 1 to %d messages, not %d", batchMost, len(msgs))
	}
	for _, m := range msgs {
		if err := p.admit(ctx, m); err != nil {
			return 0, err
		}
	}
	if c := (claims{}); !c.add(msgs...) {
		return 0, errors.New("bus: a message of an atomic batch has an expectation on a subject that an earlier one writes to, or has an expectation on too")
	}
	if len(msgs) == 1 {
		return p.send(ctx, msgs[0])
	}
	return p.sendBatch(ctx, msgs)
}

// send publishes one message and waits for its verdict.
func (p *Publisher) send(ctx context.Context, msg *nats.Msg) (uint64, error) {
	return p.try(ctx, func(ctx context.Context) (*ack, error) { return p.request(ctx, msg) })
}

// sendBatch publishes messages as one atomic batch and returns the sequence of
// the last. The errors of refusals wrap a *jetstream.APIError.
func (p *Publisher) sendBatch(ctx context.Context, msgs []*nats.Msg) (uint64, error) {
	return p.try(ctx, func(ctx context.Context) (*ack, error) {
		id := nuid.Next()
		member := func(i int) *nats.Msg {
			m := &nats.Msg{Subject: msgs[i].Subject, Data: msgs[i].Data, Header: maps.Clone(msgs[i].Header)}
			if m.Header == nil {
				m.Header = nats.Header{}
			}
			m.Header.Set(headerBatchID, id)
			m.Header.Set(headerBatchSequence, strconv.Itoa(i+1))
			return m
		}
		last := len(msgs) - 1
		for i := range last {
			if err := p.nc.PublishMsg(member(i)); err != nil {
				return nil, err // without its commit the server forgets the batch
			}
		}
		commit := member(last)
		commit.Header.Set(headerBatchCommit, "1")
		a, err := p.request(ctx, commit)
		if err == nil && a.Count != len(msgs) {
			return nil, fmt.Errorf("%w: %d messages were sent and %d stored", ErrAmbiguous, len(msgs), a.Count)
		}
		return a, err
	})
}

// An ack is the server's answer to a publish.
type ack struct {
	Stream   string              `json:"stream"`
	Sequence uint64              `json:"seq"`
	Count    int                 `json:"count"` // of a batch
	Error    *jetstream.APIError `json:"error"`
}

// request sends msg once. nats.go's own JetStream publish would send it again by
// itself.
func (p *Publisher) request(ctx context.Context, msg *nats.Msg) (*ack, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer, err := p.nc.RequestMsgWithContext(ctx, msg)
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			return nil, err
		}
		return nil, errors.Join(ErrAmbiguous, err)
	}
	var a ack
	if err := json.Unmarshal(answer.Data, &a); err != nil {
		return nil, errors.Join(ErrAmbiguous, err)
	}
	if a.Error != nil {
		return nil, a.Error
	}
	if a.Stream != p.stream {
		return nil, fmt.Errorf("bus: subject %q was stored in %q, not in %s", msg.Subject, a.Stream, p.stream)
	}
	return &a, nil
}

// try does attempt, again as long as it certainly stored nothing and may do so
// in a moment: while there is no leader, or another message with an expectation
// on the same subject is under way in a cluster.
func (p *Publisher) try(ctx context.Context, attempt func(context.Context) (*ack, error)) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		a, err := p.attempt(ctx, attempt)
		if err == nil {
			return a.Sequence, nil
		}
		if !passing(err) {
			return 0, p.explain(err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, p.explain(err)
		}
	}
}

func (p *Publisher) attempt(ctx context.Context, attempt func(context.Context) (*ack, error)) (*ack, error) {
	if !p.nc.IsConnected() {
		// nats.go would keep the message and send it who knows when.
		return nil, nats.ErrDisconnected
	}
	return attempt(ctx)
}

// Error codes of the server that a publish can get.
const (
	codeAccountFull      jetstream.ErrorCode = 10002
	codeServerFull       jetstream.ErrorCode = 10023
	codeStorageFull      jetstream.ErrorCode = 10047
	codeTooLarge         jetstream.ErrorCode = 10054
	codeWrongMsgID       jetstream.ErrorCode = 10070
	codeWrongSequence    jetstream.ErrorCode = 10071
	codeNotStored        jetstream.ErrorCode = 10077
	codeSequenceUnderWay jetstream.ErrorCode = 10164
)

func passing(err error) bool {
	var refusal *jetstream.APIError
	if errors.As(err, &refusal) {
		return refusal.ErrorCode == codeSequenceUnderWay
	}
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrDisconnected)
}

func (p *Publisher) explain(err error) error {
	var refusal *jetstream.APIError
	switch {
	case errors.Is(err, ErrAmbiguous):
		return ambiguous(p.stream, err)
	case errors.As(err, &refusal):
		switch c := refusal.ErrorCode; {
		case c == codeWrongSequence, c == codeSequenceUnderWay, c == codeWrongMsgID:
			return athena.Wrap(athena.CodeConflict, errors.Join(ErrWrongSequence, refusal), "it was changed meanwhile; read it again")
		case c == codeAccountFull, c == codeServerFull, c == codeStorageFull,
			c == codeNotStored && strings.HasPrefix(refusal.Description, "maximum "):
			return full(p.stream, refusal)
		case c == codeTooLarge:
			return athena.Wrap(athena.CodePayloadTooLarge, refusal, "the message is too large for stream %s", p.stream)
		}
		return athena.Wrap(athena.CodeBusUnavailable, refusal, "stream %s refused the message: %s", p.stream, refusal.Description)
	}
	return athena.Wrap(athena.CodeBusUnavailable, err, "stream %s cannot be reached; nothing was stored", p.stream).RetryIn(time.Second)
}

func full(stream string, cause error) error {
	return athena.Wrap(athena.CodeBusUnavailable, errors.Join(ErrFull, cause), "stream %s is full; nothing was stored", stream).RetryIn(5 * time.Second)
}

func ambiguous(stream string, cause error) error {
	if !errors.Is(cause, ErrAmbiguous) {
		cause = errors.Join(ErrAmbiguous, cause)
	}
	return athena.Wrap(athena.CodeBusUnavailable, cause, "stream %s did not answer; the message may be stored or not", stream).RetryIn(time.Second)
}

// solitary reports whether a message may not be in a batch: the server refuses a
// batch with a message id that it has seen, refuses Nats-Expected-Last-Msg-Id in
// one, and takes Nats-Expected-Last-Sequence and a rollup of all in the first
// message only.
func solitary(m *nats.Msg) bool {
	h := m.Header
	return h.Get(jetstream.MsgIDHeader) != "" || h.Get(jetstream.ExpectedLastMsgIDHeader) != "" ||
		h.Get(jetstream.ExpectedLastSeqHeader) != "" || h.Get(jetstream.MsgRollup) == jetstream.MsgRollupAll
}

// room is what a stream that cannot refuse has left. It looks at the stream once
// a second.
type room struct {
	bus  *Bus
	most int64

	mu     sync.Mutex
	looked time.Time
	full   bool
}

func (r *room) check(ctx context.Context) error {
	r.mu.Lock()
	look := time.Since(r.looked) > time.Second
	if look {
		r.looked = time.Now() // the others do not wait for this look
	}
	isFull := r.full
	r.mu.Unlock()
	if look {
		s, err := r.bus.js.Stream(ctx, StreamJobs)
		if err != nil {
			return unread(StreamJobs, err)
		}
		isFull = s.CachedInfo().State.Bytes >= uint64(r.most)
		r.mu.Lock()
		r.full = isFull
		r.mu.Unlock()
	}
	if isFull {
		return full(StreamJobs, fmt.Errorf("bus: it holds %d bytes or more", r.most))
	}
	return nil
}
