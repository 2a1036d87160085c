package apitest

import (
	"context"
	"errors"
	"sync"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
)

// A Source says what the engine in memory, which has no log of changes, answers
// when it is asked about capturing.
type Source struct {
	mu    sync.Mutex
	check driver.ChangeCheck
	err   error
	asked []driver.ChangeSetup
}

// Answer has the next checks be answered so.
func (s *Source) Answer(check driver.ChangeCheck, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.check, s.err = check, err
}

// Asked lists what was asked about so far.
func (s *Source) Asked() []driver.ChangeSetup {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]driver.ChangeSetup(nil), s.asked...)
}

// changing is the engine in memory with a Source.
type changing struct {
	*memory.Backend
	source *Source
}

var _ driver.ChangeSource = (*changing)(nil)

var errNoLog = errors.New("apitest: the engine in memory has no log of changes")

func (c *changing) CheckChanges(_ context.Context, s driver.ChangeSetup) (driver.ChangeCheck, error) {
	c.source.mu.Lock()
	defer c.source.mu.Unlock()
	c.source.asked = append(c.source.asked, s)
	return c.source.check, c.source.err
}

func (*changing) PrepareChanges(context.Context, driver.ChangeSetup) error { return errNoLog }

func (*changing) StartChanges(context.Context, driver.ChangeSetup, func(string)) (driver.ChangeStart, driver.ChangeSnapshot, error) {
	return driver.ChangeStart{}, nil, errNoLog
}

func (*changing) OpenChanges(context.Context, driver.ChangeConfig) (driver.ChangeStream, error) {
	return nil, errNoLog
}

func (*changing) DropChanges(context.Context, driver.ChangeSetup) error { return errNoLog }

func (*changing) ChangeHealth(context.Context, driver.ChangeSetup) (driver.ChangeHealth, error) {
	return driver.ChangeHealth{}, errNoLog
}
