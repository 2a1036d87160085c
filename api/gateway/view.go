package gateway

import (
	"strconv"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// job is a job as a caller sees it. Its params stay inside, since they may hold
// what the statement's author kept out of its text; so does the token of its
// transaction.
type job struct {
	ID       string          `json:"id"`
	Client   string          `json:"client"`
	Engine   athena.Engine   `json:"engine"`
	State    deferred.State  `json:"state"`
	Priority deferred.Lane   `json:"priority"`
	Language driver.Language `json:"language"`
	Query    string          `json:"query"`
	// QueryCut says that only the beginning of the query is shown.
	QueryCut   bool              `json:"query_cut,omitempty"`
	Raw        bool              `json:"raw,omitempty"`
	ReadOnly   bool              `json:"read_only,omitempty"`
	Idempotent bool              `json:"idempotent,omitempty"`
	Timeout    athena.Duration   `json:"timeout"`
	RowLimit   int64             `json:"row_limit,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Format     deferred.Format   `json:"format"`
	ResultTTL  athena.Duration   `json:"result_ttl"`
	// Webhook says that there is one; its URL may hold a secret.
	Webhook     bool               `json:"webhook,omitempty"`
	SubmittedAt time.Time          `json:"submitted_at"`
	SubmittedBy string             `json:"submitted_by,omitempty"` // the public id of the key
	RequestID   string             `json:"request_id,omitempty"`
	UpdatedAt   time.Time          `json:"updated_at"`
	NotBefore   time.Time          `json:"not_before,omitzero"`
	Deadline    time.Time          `json:"deadline"`
	NextAt      time.Time          `json:"next_at,omitzero"`
	Attempts    []deferred.Attempt `json:"attempts"`
	Requeues    int                `json:"requeues,omitempty"`
	Error       *deferred.Failure  `json:"error,omitempty"`
	Result      *summary           `json:"result,omitempty"`
	ResultLost  bool               `json:"result_lost,omitempty"`
	ETag        string             `json:"etag"`
}

// summary describes a result without its rows.
type summary struct {
	Columns      []driver.Column `json:"columns"`
	Rows         int64           `json:"rows"`
	Bytes        int64           `json:"bytes"`
	RowsAffected int64           `json:"rows_affected"`
	Truncated    bool            `json:"truncated,omitempty"`
	Segments     int             `json:"segments"` // 0: the rows are few and come at once
	Complete     bool            `json:"complete"`
	ExpiresAt    time.Time       `json:"expires_at,omitzero"`
	URL          string          `json:"url"`
}

// shown is how much of a query is shown where jobs are many.
const shown = 1 << 10

// newJob shows a job in full.
func newJob(j *deferred.Job, st deferred.Status, state deferred.State) job {
	v := job{
		ID: j.ID, Client: j.Client, Engine: j.Engine, State: state, Priority: j.Lane, Language: j.Language,
		Query: j.Query, Raw: j.Raw, ReadOnly: j.ReadOnly, Idempotent: j.Idempotent, Timeout: j.Timeout, RowLimit: j.RowLimit,
		Labels: j.Labels, Format: j.Format, ResultTTL: j.ResultTTL, Webhook: j.Webhook != nil, SubmittedAt: j.SubmittedAt, RequestID: j.RequestID, UpdatedAt: st.At,
		NotBefore: j.NotBefore, Deadline: j.Due(st), NextAt: st.NextAt, Attempts: st.Attempts, Requeues: st.Requeues,
		Error: st.Error, ResultLost: st.ResultLost, ETag: etag(st, state),
	}
	if j.Principal != nil {
		v.SubmittedBy = j.Principal.Key
	}
	if v.UpdatedAt.IsZero() {
		v.UpdatedAt = j.SubmittedAt
	}
	if v.Attempts == nil {
		v.Attempts = []deferred.Attempt{}
	}
	if r := st.Result; r != nil {
		v.Result = &summary{
			Columns: columns(r), Rows: r.Rows, Bytes: r.Bytes, RowsAffected: r.RowsAffected,
			Truncated: r.Truncated, Segments: len(r.Segments), Complete: r.Complete, ExpiresAt: r.ExpiresAt,
			URL: location(j) + "/result",
		}
	}
	return v
}

// brief shows a job with the beginning of its query.
func brief(j *deferred.Job, st deferred.Status, state deferred.State) job {
	v := newJob(j, st, state)
	if len(v.Query) > shown {
		v.QueryCut = true
		cut := shown
		for cut > 0 && v.Query[cut]&0xc0 == 0x80 { // within a character
			cut--
		}
		v.Query = v.Query[:cut]
	}
	return v
}

func columns(r *deferred.Result) []driver.Column {
	if r.Columns == nil {
		return []driver.Column{}
	}
	return r.Columns
}

// etag changes with all that a caller sees of a job: what is stored, and the
// state that is derived from it.
func etag(st deferred.Status, state deferred.State) string {
	return `"` + strconv.FormatUint(st.Rev, 10) + "-" + string(state) + `"`
}
