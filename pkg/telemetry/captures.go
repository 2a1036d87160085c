package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Capture has the figures of one client's capture of changes.
type Capture struct {
	Client, State  string
	LagBytes       int64
	LagSeconds     float64
	Changes, Bytes uint64 // since its worker took it
	Rejected       uint64
	Restarts       int
	Spilled        int64
	// Slot says whether the next two are known.
	Slot           bool
	Retained, Safe int64         // of the source's log; Safe is -1 without a limit
	Age            time.Duration // since its worker told
	// Streams is how many streams a log has that is no single one; 0 for one that
	// is, and then the next four are not known.
	Streams           int
	Complete, Expires time.Time // Expires is zero where the log waits
	Swept             time.Time // zero where late changes are not looked for
	Late              uint64
	SnapshotRows      int64
	SnapshotTotal     int64 // estimated; 0 if no snapshot runs
}

// Captures adds the figures of captures, which are asked for at each scrape.
// list must answer at once and be safe for concurrent use.
func (m *Metrics) Captures(list func() []Capture) {
	if m != nil {
		m.registry.MustRegister(&captures{list})
	}
}

type captures struct{ list func() []Capture }

func captureDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("athena_cdc_"+name, help, append([]string{KeyClient}, labels...), nil)
}

var (
	captureState    = captureDesc("state", "1 for the state that a capture is in.", "state")
	captureAge      = captureDesc("status_age_seconds", "Since the worker of a capture last told how it fares.")
	captureLag      = captureDesc("lag_bytes", "Log of the source that is not stored yet.")
	captureDelay    = captureDesc("lag_seconds", "Age of the last stored transaction while a capture is behind; 0 when it is not.")
	captureChanges  = captureDesc("changes_total", "Changes stored since the worker took the capture.")
	captureBytes    = captureDesc("bytes_total", "Bytes of changes stored since the worker took the capture.")
	captureRejected = captureDesc("rejected_total", "Changes that could not be encoded and are dead letters.")
	captureRestarts = captureDesc("restarts_total", "How often a capture was interrupted since the worker took it.")
	captureSpilled  = captureDesc("spilled_bytes", "Open transactions on the worker's disk.")
	captureRetained = captureDesc("slot_retained_bytes", "Log that the source keeps for a capture.")
	captureSafe     = captureDesc("slot_safe_bytes", "Log that may still be written before the source gives the slot up; none is told without a limit.")
	captureStreams  = captureDesc("streams", "Streams of a log of many that are read.")
	captureComplete = captureDesc("complete_age_seconds", "Age of the time up to which a log of many streams has been handed over.")
	captureExpires  = captureDesc("expires_in_seconds", "Until the oldest change that is not confirmed leaves the source's log.")
	captureSwept    = captureDesc("swept_age_seconds", "Age of the time up to which late changes have been looked for.")
	captureLate     = captureDesc("late_total", "Late changes that were found since the worker opened the log.")
	captureRows     = captureDesc("snapshot_rows", "Rows that the running snapshots have read.")
	captureTotal    = captureDesc("snapshot_rows_expected", "Rows that the running snapshots are expected to have.")
)

// Describe implements prometheus.Collector.
func (c *captures) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect implements prometheus.Collector.
func (c *captures) Collect(to chan<- prometheus.Metric) {
	for _, f := range c.list() {
		tell := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(d, kind, v, append([]string{f.Client}, labels...)...)
		}
		tell(captureState, prometheus.GaugeValue, 1, f.State)
		tell(captureAge, prometheus.GaugeValue, f.Age.Seconds())
		tell(captureLag, prometheus.GaugeValue, float64(f.LagBytes))
		tell(captureDelay, prometheus.GaugeValue, f.LagSeconds)
		tell(captureChanges, prometheus.CounterValue, float64(f.Changes))
		tell(captureBytes, prometheus.CounterValue, float64(f.Bytes))
		tell(captureRejected, prometheus.CounterValue, float64(f.Rejected))
		tell(captureRestarts, prometheus.CounterValue, float64(f.Restarts))
		tell(captureSpilled, prometheus.GaugeValue, float64(f.Spilled))
		if f.Slot {
			tell(captureRetained, prometheus.GaugeValue, float64(f.Retained))
			if f.Safe >= 0 {
				tell(captureSafe, prometheus.GaugeValue, float64(f.Safe))
			}
		}
		if f.Streams > 0 {
			tell(captureStreams, prometheus.GaugeValue, float64(f.Streams))
			tell(captureLate, prometheus.CounterValue, float64(f.Late))
			if !f.Complete.IsZero() {
				tell(captureComplete, prometheus.GaugeValue, time.Since(f.Complete).Seconds())
			}
			if !f.Swept.IsZero() {
				tell(captureSwept, prometheus.GaugeValue, time.Since(f.Swept).Seconds())
			}
			if !f.Expires.IsZero() {
				tell(captureExpires, prometheus.GaugeValue, time.Until(f.Expires).Seconds())
			}
		}
		if f.SnapshotTotal > 0 {
			tell(captureRows, prometheus.GaugeValue, float64(f.SnapshotRows))
			tell(captureTotal, prometheus.GaugeValue, float64(f.SnapshotTotal))
		}
	}
}
