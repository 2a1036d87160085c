package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// KeyPipeline is the dimension of pipelines. Definitions that are run at once and
// stored nowhere have the empty name.
const KeyPipeline = "pipeline"

// A Pipeline has the figures of one pipeline.
type Pipeline struct {
	Name  string
	State string         // of its newest run; empty if there is none, or it is of no interest
	Runs  map[string]int // that are kept, by state
	// What its runs have come to since the process began to count.
	Read, Written, Rejected, Discarded, Bytes, Objects int64
	Kept                                               int64 // rows that could not go on, and are kept
	// Live says that a run is under way, of which the next is known.
	Live bool
	Age  time.Duration // since its workers told how far it is
	// Stream says that it follows changes, so that it can be behind.
	Stream     bool
	LagSeconds float64
}

// Pipelines has the figures of all pipelines, and of what they share.
type Pipelines struct {
	Each []Pipeline
	// RejectedBytes is what all rows take that could not go on, and RejectedMost what
	// they may; 0 is not known yet.
	RejectedBytes, RejectedMost int64
}

// Pipelines adds the figures of pipelines, which are asked for at each scrape.
// figures must answer at once and be safe for concurrent use; how many pipelines it
// names is for it to bound.
func (m *Metrics) Pipelines(figures func() Pipelines) {
	if m != nil {
		m.registry.MustRegister(&pipelines{figures})
	}
}

type pipelines struct{ figures func() Pipelines }

func pipelineDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("athena_pipeline_"+name, help, append([]string{KeyPipeline}, labels...), nil)
}

var (
	pipelineState     = pipelineDesc("state", "1 for the state of a pipeline's newest run.", "state")
	pipelineRuns      = pipelineDesc("runs", "Runs that are kept, by the state that they are in.", "state")
	pipelineRead      = pipelineDesc("rows_read_total", "Rows read from sources since this process began.")
	pipelineWritten   = pipelineDesc("rows_written_total", "Rows that sinks took since this process began.")
	pipelineRejected  = pipelineDesc("rows_rejected_total", "Rows that could not go on since this process began.")
	pipelineDiscarded = pipelineDesc("rows_discarded_total", "Rows that schema contracts dropped since this process began.")
	pipelineBytes     = pipelineDesc("bytes_total", "Bytes of rows read from sources since this process began.")
	pipelineObjects   = pipelineDesc("objects_total", "Objects that were written since this process began.")
	pipelineKept      = pipelineDesc("rejected_rows", "Rows that could not go on and are kept.")
	pipelineAge       = pipelineDesc("progress_age_seconds", "Since the workers of a live run last told how far it is.")
	pipelineLag       = pipelineDesc("lag_seconds", "Age of the last change that was read while a stream is behind; 0 when it is not.")
	rejectedBytes     = prometheus.NewDesc("athena_pipeline_rejected_bytes", "Bytes of all rows that could not go on and are kept.", nil, nil)
	rejectedMost      = prometheus.NewDesc("athena_pipeline_rejected_bytes_limit", "Bytes that they may have; beyond it pipelines with such rows stop.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *pipelines) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		pipelineState, pipelineRuns, pipelineRead, pipelineWritten, pipelineRejected, pipelineDiscarded, pipelineBytes,
		pipelineObjects, pipelineKept, pipelineAge, pipelineLag, rejectedBytes, rejectedMost,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *pipelines) Collect(to chan<- prometheus.Metric) {
	figures := c.figures()
	for _, f := range figures.Each {
		tell := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(d, kind, v, append([]string{f.Name}, labels...)...)
		}
		if f.State != "" {
			tell(pipelineState, prometheus.GaugeValue, 1, f.State)
		}
		for state, n := range f.Runs {
			tell(pipelineRuns, prometheus.GaugeValue, float64(n), state)
		}
		tell(pipelineRead, prometheus.CounterValue, float64(f.Read))
		tell(pipelineWritten, prometheus.CounterValue, float64(f.Written))
		tell(pipelineRejected, prometheus.CounterValue, float64(f.Rejected))
		tell(pipelineDiscarded, prometheus.CounterValue, float64(f.Discarded))
		tell(pipelineBytes, prometheus.CounterValue, float64(f.Bytes))
		tell(pipelineObjects, prometheus.CounterValue, float64(f.Objects))
		tell(pipelineKept, prometheus.GaugeValue, float64(f.Kept))
		if f.Live {
			tell(pipelineAge, prometheus.GaugeValue, f.Age.Seconds())
		}
		if f.Live && f.Stream {
			tell(pipelineLag, prometheus.GaugeValue, f.LagSeconds)
		}
	}
	if figures.RejectedMost > 0 {
		to <- prometheus.MustNewConstMetric(rejectedBytes, prometheus.GaugeValue, float64(figures.RejectedBytes))
		to <- prometheus.MustNewConstMetric(rejectedMost, prometheus.GaugeValue, float64(figures.RejectedMost))
	}
}
