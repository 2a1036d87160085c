package scylla

import (
	"time"

	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/driver"
)

const (
	// defaultConfidence is how old a change is when it is read, at least: several
	// times as long as a write may take at the server (2 s) until it fails.
	defaultConfidence = 10 * time.Second
	// defaultSweep is how far back late changes are looked for.
	defaultSweep = 10 * time.Minute
	// leastDelay is between two questions for the same streams, and mostDelay if
	// there are many: all groups together are asked for askedPerSecond times.
	leastDelay     = 300 * time.Millisecond
	mostDelay      = 10 * time.Second
	askedPerSecond = 1000
	// rowsAtOnce is about how many rows of logs are held in pages.
	rowsAtOnce = 200_000
)

// A pace says how often what is done. All of it follows from the two times that
// the setup has and from how many groups of streams there are.
type pace struct {
	confidence, sweep  time.Duration
	delay, behindDelay time.Duration // between two questions for the same streams
	look               time.Duration // for generations
	page               int           // rows
	patience           time.Duration // with a group that does not move
	silence            time.Duration // of the cluster
	record             time.Duration // of marks without a batch
	current            time.Duration // how far behind is caught up
}

func newPace(s driver.ChangeSetup) pace {
	p := pace{confidence: s.Confidence, sweep: s.Sweep}
	if p.confidence == 0 {
		p.confidence = defaultConfidence
	}
	if p.sweep == 0 {
		p.sweep = max(defaultSweep, 2*p.confidence)
	}
	p.sweep = max(p.sweep, 0)
	return p
}

// with is the pace for a number of groups.
func (p pace) with(groups int) pace {
	share := time.Duration(groups) * time.Second / askedPerSecond
	p.delay = min(max(leastDelay, share), mostDelay)
	p.behindDelay = min(max(p.sweep/20, p.delay), 30*time.Second)
	p.look = min(max(p.confidence/2, leastDelay), 5*time.Second)
	p.page = min(max(rowsAtOnce/max(groups, 1), 100), 5000)
	p.patience = max(5*time.Minute, 10*p.confidence)
	p.silence = max(30*time.Second, 4*p.delay)
	p.record = min(max(p.confidence/2, leastDelay), 5*time.Second)
	p.current = p.confidence + 5*p.delay + 2*p.look
	return p
}

// advance is what scylla-cdc-go is told. A window is a question of its own, and
// has a delay of its own also where it has no rows, so there must be few of them;
// but how far a reader is becomes known between them.
func (p pace) advance(behind time.Duration) scyllacdc.AdvancedReaderConfig {
	return scyllacdc.AdvancedReaderConfig{
		ConfidenceWindowSize: p.confidence,
		QueryTimeWindowSize:  max(5*time.Minute, behind/60),
		// They bound the time from one question to the next one, not the pause.
		PostNonEmptyQueryDelay: p.delay, PostEmptyQueryDelay: p.delay,
		PostFailedQueryDelay: p.delay, MaxPostFailedQueryDelay: max(5*time.Second, p.delay),
		PostGenerationFetchDelay: p.look, MaxPostGenerationFetchDelay: 6 * p.look,
		TableMissingRetryLimit: 5,
	}
}

// behind is the same for the sweep.
func (p pace) behind(behind time.Duration) scyllacdc.AdvancedReaderConfig {
	a := p.advance(behind)
	a.ConfidenceWindowSize = p.sweep
	a.PostNonEmptyQueryDelay, a.PostEmptyQueryDelay = p.behindDelay, p.behindDelay
	return a
}
