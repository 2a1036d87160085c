package apitest

import (
	"context"
	"sync"

	"github.com/athena-pipelines/athena/pipelines/spec"
)

// Plans answers as it is told to when a definition is to be judged, and lets all
// pass until then.
type Plans struct {
	mu    sync.Mutex
	plan  any
	err   error
	asked []string
}

// Answer has the next definitions be judged so.
func (p *Plans) Answer(plan any, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan, p.err = plan, err
}

// Asked lists the levels that were asked for so far.
func (p *Plans) Asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asked...)
}

// Plan is pipelines.Planner's.
func (p *Plans) Plan(_ context.Context, _ *spec.Pipeline, level string) (any, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, level)
	if p.plan == nil && p.err == nil {
		return map[string]any{"level": level}, nil
	}
	return p.plan, p.err
}
