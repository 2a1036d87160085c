package bus

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Streams.
const (
	StreamJobs      = "ATH_JOBS"       // acceptance records, wake-ups, schedules
	StreamJobEvents = "ATH_JOB_EVENTS" // job states, webhook deliveries
	StreamDead      = "ATH_DEAD"       // dead letters
	StreamOps       = "ATH_OPS"        // the operation log
	StreamResults   = "ATH_RESULTS"    // chunks of results
	StreamRejected  = "ATH_REJECTED"   // rows that pipelines could not take on
)

// Key-value buckets.
const (
	BucketCatalog = "ath_catalog" // client definitions
	BucketKeys    = "ath_keys"    // API keys
	BucketLeases  = "ath_leases"  // who holds what, with a time to live
	BucketState   = "ath_state"   // small facts, some with a time to live
	BucketCDC     = "ath_cdc"     // captures, their status, subscriptions
	// BucketPipelines holds definitions, runs, their tasks and cursors.
	BucketPipelines = "ath_pipelines"
)

// MaxPayload is the largest message that the embedded server takes.
const MaxPayload = 8 << 20

// MarkerTTL is how long the server keeps the marker of a key that has expired.
const MarkerTTL = time.Minute

const day = 24 * time.Hour

// Config says how the topology is laid out. Zero fields stand for the defaults.
type Config struct {
	// Replicas of every stream and bucket: 1, 3 or 5. 1.
	Replicas int
	// MaxBytes overrides the size limits of streams and buckets ("KV_" and the
	// bucket's name) by name. See Topology for the defaults; that of ATH_JOBS,
	// 4 GiB, is looked at every second, so it can be overshot a little. ATH_JOB_EVENTS has
	// none: a job that was accepted can always end.
	MaxBytes map[string]int64
	// Embedded is the server if it runs in this process; then its sync setting
	// can be checked.
	Embedded *Server
}

// Topology returns the settings of all streams and of the streams under the
// buckets, in the order in which they are made.
//
// What was promised is never let go of: results and buckets refuse new messages
// when they are full; jobs and events have no size limit in the stream, as the
// server does not let a stream with schedules refuse (2.15 error 10052), and the
// Publisher refuses new jobs instead. The logs let go of the oldest.
func Topology(cfg Config) []jetstream.StreamConfig {
	jobs := scheduling(stream(StreamJobs, "Accepted jobs, their wake-ups and schedules", -1, "ath.job.>", "ath.jobsched.>"))

	events := scheduling(stream(StreamJobEvents, "States of jobs and their webhook deliveries", -1, "ath.jobev.>", "ath.jobhook.>", "ath.jobhooksched.>"))
	// Each event lives as long as its job; the age is for what has no time of
	// its own.
	events.MaxAge, events.MaxMsgsPerSubject = 62*day, 64

	dead := stream(StreamDead, "Work that was given up", 256<<20, "ath.dead.>")
	dead.MaxAge, dead.Discard = 14*day, jetstream.DiscardOld

	ops := stream(StreamOps, "The operation log", 512<<20, "ath.ops.>")
	ops.MaxAge, ops.Discard = 7*day, jetstream.DiscardOld
	ops.Compression = jetstream.S2Compression

	// A result's chunks are messages with a time to live, not objects: nats.go
	// v1.55 has no time to live for one object. Their payload is compressed.
	results := stream(StreamResults, "Results of jobs, in chunks", 32<<30, "ath.result.>")
	results.AllowMsgTTL = true

	// Full, it stops the pipelines that have more: a row is not lost in silence.
	// One subject is one row, so that a repeated attempt stores it once.
	rejected := stream(StreamRejected, "Rows that pipelines could not take on", 1<<30, "ath.rejected.>")
	rejected.MaxAge, rejected.MaxMsgsPerSubject = 30*day, 1
	rejected.Compression = jetstream.S2Compression

	all := []jetstream.StreamConfig{
		jobs, events, dead, ops, results, rejected,
		bucket(BucketCatalog, "Client definitions", 10, 256<<20),
		bucket(BucketKeys, "API keys", 1, 256<<20),
		bucket(BucketLeases, "Leases", 1, 256<<20),
		bucket(BucketState, "Small facts", 1, 256<<20),
		bucket(BucketCDC, "Captures, their status, subscriptions to changes", 1, 256<<20),
		bucket(BucketPipelines, "Pipelines: definitions, runs, their tasks and cursors", 1, 1<<30),
	}
	for i := range all {
		all[i].Replicas = max(1, cfg.Replicas)
		if most, ok := cfg.MaxBytes[all[i].Name]; ok && all[i].MaxBytes > 0 {
			all[i].MaxBytes = most
		}
	}
	return all
}

// CDCConfig is the stream of one client's changes. It refuses what it has no
// room for, which stops the capture: the source keeps its log, and nothing that
// was not read is let go of but by age.
func CDCConfig(client string, maxAge time.Duration, maxBytes int64, replicas int) jetstream.StreamConfig {
	s := stream(CDCStream(client), "Changes of client "+client, maxBytes, CDCAll(client), CDCSnapshot(client, Any))
	s.MaxAge, s.DenyDelete, s.Compression = maxAge, true, jetstream.S2Compression
	if maxAge > 0 { // the server wants no longer memory of ids than of messages
		s.Duplicates = min(s.Duplicates, maxAge)
	}
	s.Replicas = max(1, replicas)
	return s
}

// stream has every limit written out, so that it compares equal to what the
// server gives back.
func stream(name, description string, maxBytes int64, subjects ...string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:               name,
		Description:        description,
		Subjects:           subjects,
		Retention:          jetstream.LimitsPolicy,
		Storage:            jetstream.FileStorage,
		Discard:            jetstream.DiscardNew,
		MaxBytes:           maxBytes,
		MaxMsgs:            -1,
		MaxMsgsPerSubject:  -1,
		MaxMsgSize:         -1,
		MaxConsumers:       -1,
		Duplicates:         2 * time.Minute,
		AllowDirect:        true,
		AllowAtomicPublish: true,
	}
}

// scheduling lets a stream hold schedules. Such a stream cannot refuse when it is
// full, so it has no limit at which it would discard.
func scheduling(s jetstream.StreamConfig) jetstream.StreamConfig {
	s.AllowMsgSchedules, s.AllowMsgTTL, s.AllowRollup = true, true, true
	s.Discard = jetstream.DiscardOld
	return s
}

// bucket is what nats.go would make of a KeyValueConfig.
func bucket(name, description string, history, maxBytes int64) jetstream.StreamConfig {
	s := stream("KV_"+name, description, maxBytes, "$KV."+name+".>")
	s.MaxMsgsPerSubject = history
	s.AllowRollup, s.DenyDelete, s.AllowMsgTTL = true, true, true
	s.SubjectDeleteMarkerTTL = MarkerTTL
	return s
}

// jobsMost is the size at which no further job is accepted.
func (b *Bus) jobsMost() int64 {
	if most := b.cfg.MaxBytes[StreamJobs]; most > 0 {
		return most
	}
	return 4 << 30
}
