package main

import (
	"context"
	"fmt"
	"time"
)

// account tells what the demo does, for people, or with --json as one object in
// the end.
type account struct {
	*program
	begun   time.Time
	n       int
	steps   []*demoStep
	figures map[string]float64
}

type demoStep struct {
	Title   string   `json:"title"`
	OK      bool     `json:"ok"`
	Seconds float64  `json:"seconds"`
	Facts   []string `json:"facts"`
	Error   string   `json:"error,omitempty"`
}

func newAccount(p *program) *account {
	return &account{program: p, begun: time.Now(), figures: map[string]float64{}}
}

// step does one thing and tells how it went.
func (a *account) step(ctx context.Context, title string, do func(context.Context) error) error {
	a.n++
	s := &demoStep{Title: title, Facts: []string{}}
	a.steps = append(a.steps, s)
	if !a.asJSON {
		fmt.Fprintf(a.stdout, "\n%s\n", a.paint(a.stdout, bold, fmt.Sprintf("%d. %s", a.n, title)))
	}
	begin := time.Now()
	err := do(ctx)
	s.OK, s.Seconds = err == nil, time.Since(begin).Seconds()
	if err != nil {
		s.Error = err.Error()
		if !a.asJSON {
			fmt.Fprintf(a.stdout, "   %s %v\n", a.paint(a.stdout, red, "FAILED"), err)
		}
		return fmt.Errorf("demo: %s: %w", title, err)
	}
	return nil
}

// fact tells something that was seen to be so.
func (a *account) fact(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s := a.steps[len(a.steps)-1]
	s.Facts = append(s.Facts, text)
	if !a.asJSON {
		fmt.Fprintf(a.stdout, "   %s %s\n", a.paint(a.stdout, green, "✓"), text)
	}
}

// figure keeps a measured value under a stable name, for --json.
func (a *account) figure(name string, value float64) { a.figures[name] = value }

// end tells the outcome.
func (a *account) end(err error) error {
	took := time.Since(a.begun)
	if a.asJSON {
		a.figure("seconds", took.Seconds())
		if e := writeJSON(a.stdout, map[string]any{"ok": err == nil, "figures": a.figures, "steps": a.steps}); err == nil {
			err = e
		}
		return err
	}
	if err == nil {
		fmt.Fprintf(a.stdout, "\n%s\n\nNext: %s dev\n", a.paint(a.stdout, green, fmt.Sprintf("All of it worked, in %.0f seconds.", took.Seconds())), invocation())
	}
	return err
}

// since is the time from t until now, for people.
func since(t time.Time) time.Duration { return readable(time.Since(t)) }

// readable rounds a span to what is worth reading.
func readable(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d > 100*time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}
