package runner

import (
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
)

// A rate is what has been counted in the last seconds.
type rate struct{ samples []sample }

type sample struct {
	at          time.Time
	rows, bytes int64
}

// of adds a sample and returns rows and bytes a second.
func (r *rate) of(now time.Time, rows, bytes int64) (float64, float64) {
	r.samples = append(r.samples, sample{now, rows, bytes})
	for len(r.samples) > 2 && now.Sub(r.samples[0].at) > 5*time.Second {
		r.samples = r.samples[1:]
	}
	first := r.samples[0]
	d := now.Sub(first.at).Seconds()
	if d < 0.2 {
		return 0, 0
	}
	return max(0, float64(rows-first.rows)/d), max(0, float64(bytes-first.bytes)/d)
}

// plus adds estimates, of which -1 is not known.
func plus(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

func shares(b runs.Busy) map[string]float64 {
	all := float64(b.Source + b.Transform + b.Sink)
	if all == 0 {
		return nil
	}
	return map[string]float64{"source": float64(b.Source) / all, "transform": float64(b.Transform) / all, "sink": float64(b.Sink) / all}
}
