package scylla_test

import (
	"strings"
	"testing"
	"time"
)

func TestDoubleWithAColumnThatWouldEndTheProcessIsNotReadOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "t")
	start := f.start()
	p := &tape{t: t}
	done := make(chan error, 1)
	go func() { done <- p.run(f.backend, p.config(f.setup, start), time.Minute) }()
	f.batch("ks.t", time.Now(), 1, 1)
	for len(p.rows()) == 0 { // until it is read
		select {
		case err := <-done:
			t.Fatalf("it ended with %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	f.cluster.MustExec(t, `ALTER TABLE ks.t ADD bad map<blob, int>`) // of which nothing is written
	if err := <-done; err == nil || !strings.Contains(err.Error(), `column "bad" holds maps whose keys are of the type blob`) {
		t.Errorf("it is read on, and ends with %v", err)
	}
	if err := p.run(f.backend, p.config(f.setup, start), time.Second); err == nil || !strings.Contains(err.Error(), `column "bad"`) {
		t.Errorf("it is opened again, and ends with %v", err)
	}
}
