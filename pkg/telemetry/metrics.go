package telemetry

import (
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the figures of one process, on a registry of their own. Methods
// are safe for concurrent use; those of a nil *Metrics count nothing.
//
// The label client holds names of clients that exist and no others: callers
// pass a client that they have resolved, or an empty one.
type Metrics struct {
	registry *prometheus.Registry

	operations *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	moves      *prometheus.CounterVec
	running    *prometheus.GaugeVec
	waits      *prometheus.HistogramVec
	deliveries *prometheus.CounterVec
	dropped    prometheus.Counter
	publishes  *prometheus.HistogramVec
}

// latencies are in seconds: from what a cache answers in to the usual timeout.
var latencies = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30, 60}

// waits are in seconds: from at once to a night.
var waits = [...]float64{.01, .05, .25, 1, 5, 15, 60, 300, 1800, 7200, 43200}

// NewMetrics makes the metrics of a process of this version.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athena_operations_total", Help: "Operations that took the road, by outcome; code is ok on success.",
		}, []string{KeyClient, KeyEngine, KeyFamily, KeyCode}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "athena_operation_duration_seconds", Help: "How long operations took.", Buckets: latencies[:],
		}, []string{KeyClient, KeyEngine, KeyFamily}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athena_job_transitions_total", Help: "Jobs that entered a state.",
		}, []string{KeyClient, "state"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "athena_jobs_running", Help: "Jobs that run in this process now.",
		}, []string{KeyClient}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "athena_job_wait_seconds", Help: "From the moment that a job may run to its start.", Buckets: waits[:],
		}, []string{KeyClient}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athena_webhook_deliveries_total", Help: "Attempts to deliver a webhook, by outcome.",
		}, []string{"outcome"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "athena_operation_log_dropped_total", Help: "Events of the operation log that were dropped.",
		}),
		publishes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "athena_bus_publish_seconds", Help: "From publishing to the acknowledgement that it is stored.", Buckets: latencies[:],
		}, []string{"stream"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "athena_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.operations, m.durations, m.moves, m.running, m.waits, m.deliveries, m.dropped, m.publishes, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers a scrape.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Gauge adds a figure that is asked for at each scrape, such as the bytes of a
// stream. The name gets the prefix "athena_"; value must answer at once and be
// safe for concurrent use. It panics if the name is taken.
func (m *Metrics) Gauge(name, help string, value func() float64) {
	if m != nil {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "athena_" + name, Help: help}, value))
	}
}

// Operation counts one operation. Without an engine the client was not
// resolved: its name is what a caller made up, and does not become a label.
func (m *Metrics) Operation(client, engine, family, code string, elapsed time.Duration) {
	if m == nil {
		return
	}
	if engine == "" {
		client = ""
	}
	if code == "" {
		code = "ok"
	}
	m.operations.WithLabelValues(client, engine, family, code).Inc()
	m.durations.WithLabelValues(client, engine, family).Observe(elapsed.Seconds())
}

// JobMoved counts a job that entered a state.
func (m *Metrics) JobMoved(client, state string) {
	if m != nil {
		m.moves.WithLabelValues(client, state).Inc()
	}
}

// JobStarted counts a job that begins to run here, after having been runnable
// for wait. JobEnded must follow.
func (m *Metrics) JobStarted(client string, wait time.Duration) {
	if m != nil {
		m.running.WithLabelValues(client).Inc()
		m.waits.WithLabelValues(client).Observe(max(0, wait.Seconds()))
	}
}

// JobEnded counts a job that no longer runs here.
func (m *Metrics) JobEnded(client string) {
	if m != nil {
		m.running.WithLabelValues(client).Dec()
	}
}

// WebhookTried counts an attempt to deliver a webhook. The outcomes are few and
// fixed words, such as delivered, retry, disabled.
func (m *Metrics) WebhookTried(outcome string) {
	if m != nil {
		m.deliveries.WithLabelValues(outcome).Inc()
	}
}

// OpsDropped counts events that the operation log let go.
func (m *Metrics) OpsDropped(n int) {
	if m != nil {
		m.dropped.Add(float64(n))
	}
}

// Published notes how long the bus took to store.
func (m *Metrics) Published(stream string, elapsed time.Duration) {
	if m != nil {
		m.publishes.WithLabelValues(stream).Observe(elapsed.Seconds())
	}
}

// Forget drops the figures of a client that was deleted, so that the labels do
// not grow for ever.
func (m *Metrics) Forget(client string) {
	if m == nil || client == "" {
		return
	}
	of := prometheus.Labels{KeyClient: client}
	m.operations.DeletePartialMatch(of)
	m.durations.DeletePartialMatch(of)
	m.moves.DeletePartialMatch(of)
	m.running.DeletePartialMatch(of)
	m.waits.DeletePartialMatch(of)
}
