package sdk

import (
	"context"
	"iter"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// State is where a job stands.
type State string

// The states.
const (
	Scheduled     State = "scheduled"
	Queued        State = "queued"
	Held          State = "held"
	Running       State = "running"
	Spooling      State = "spooling"
	RetryWait     State = "retry_wait"
	Cancelling    State = "cancelling"
	Succeeded     State = "succeeded"
	Failed        State = "failed"
	TimedOut      State = "timed_out"
	Cancelled     State = "cancelled"
	Expired       State = "expired"
	Indeterminate State = "indeterminate"
)

// Terminal reports whether nothing more happens to the job unless somebody asks
// for it.
func (s State) Terminal() bool {
	switch s {
	case Succeeded, Failed, TimedOut, Cancelled, Expired, Indeterminate:
		return true
	}
	return false
}

// Job is a deferred query on a server. It is safe for concurrent use.
type Job struct {
	api *API
	ID  string
	// Replayed says that the submit's idempotency key had been used for the
	// same request before, and that this is the job of then.
	Replayed bool
}

// JobInfo says where a job stands.
type JobInfo struct {
	ID          string            `json:"id"`
	Client      string            `json:"client"`
	Engine      athena.Engine     `json:"engine"`
	State       State             `json:"state"`
	Priority    string            `json:"priority"`
	Query       string            `json:"query"`
	Labels      map[string]string `json:"labels,omitempty"`
	SubmittedAt time.Time         `json:"submitted_at"`
	UpdatedAt   time.Time         `json:"updated_at,omitzero"`
	NotBefore   time.Time         `json:"not_before,omitzero"`
	Deadline    time.Time         `json:"deadline"`
	NextAt      time.Time         `json:"next_at,omitzero"`
	SubmittedBy string            `json:"submitted_by,omitempty"`
	RequestID   string            `json:"request_id,omitempty"`
	Attempts    []Attempt         `json:"attempts,omitempty"`
	Requeues    int               `json:"requeues,omitempty"`
	Error       *JobError         `json:"error,omitempty"`
	Result      *JobResult        `json:"result,omitempty"`
	ResultLost  bool              `json:"result_lost,omitempty"`
}

// Attempt is one try to run a job.
type Attempt struct {
	N       int         `json:"n"` // from 1
	Worker  string      `json:"worker"`
	Started time.Time   `json:"started"`
	Ended   time.Time   `json:"ended,omitzero"`
	Outcome string      `json:"outcome,omitempty"` // a State, or "lost"
	Code    athena.Code `json:"code,omitempty"`
}

// JobError says why a job, or its last attempt, failed.
type JobError struct {
	Code    athena.Code    `json:"code"`
	Message string         `json:"message"`
	Details map[string]any `json:"details,omitempty"`
}

// JobResult describes the rows of a job.
type JobResult struct {
	Columns      []Column  `json:"columns"`
	Rows         int64     `json:"rows"`
	Bytes        int64     `json:"bytes"`
	RowsAffected int64     `json:"rows_affected"`
	Truncated    bool      `json:"truncated,omitempty"`
	Segments     int       `json:"segments,omitempty"` // 0 for a small one
	Complete     bool      `json:"complete"`
	ExpiresAt    time.Time `json:"expires_at,omitzero"`
}

// Err is the job's end as an error: nil unless it has ended otherwise than
// succeeded.
func (i *JobInfo) Err() error {
	if !i.State.Terminal() || i.State == Succeeded {
		return nil
	}
	if i.Error == nil {
		return athena.Errorf(i.State.code(), "job %s ended as %s", i.ID, i.State).With("state", string(i.State))
	}
	e := athena.Errorf(i.Error.Code, "%s", i.Error.Message)
	e.Details = i.Error.Details
	return e.With("state", string(i.State))
}

// code is that of an end about which nothing more is known.
func (s State) code() athena.Code {
	switch s {
	case Cancelled:
		return athena.CodeCancelled
	case Expired, TimedOut:
		return athena.CodeTimeout
	}
	return athena.CodeQueryFailed
}

// Job returns the job with the given id. Whether there is one shows in the
// first request.
func (a *API) Job(id string) *Job { return &Job{api: a, ID: id} }

func (j *Job) path() string { return "/gateway/deferred/" + url.PathEscape(j.ID) }

// Get says where the job stands now.
func (j *Job) Get(ctx context.Context) (*JobInfo, error) { return j.get(ctx, 0) }

func (j *Job) get(ctx context.Context, wait time.Duration) (*JobInfo, error) {
	query := url.Values{}
	if wait > 0 {
		query.Set("wait", seconds(wait)+"s")
	}
	info, _, err := answer[*JobInfo](ctx, j.api, get(j.path(), query))
	return info, err
}

// poll is how long one request waits for the end of a job.
const poll = 30 * time.Second

// patience is how long a server may be away while a job is waited for: jobs
// outlive its restart.
func (a *API) patience() time.Duration {
	if a.opts.Retries < 0 {
		return 0
	}
	return 30 * time.Second
}

// Wait returns once the job has ended, however it did: Err of what it returns
// tells.
func (j *Job) Wait(ctx context.Context) (*JobInfo, error) {
	return j.WaitFor(ctx, math.MaxInt64)
}

// WaitFor is Wait for a limited time: then it returns the job as it stands.
func (j *Job) WaitFor(ctx context.Context, atMost time.Duration) (*JobInfo, error) {
	start, answered := time.Now(), time.Now()
	for quick := 0; ; {
		left := atMost - time.Since(start)
		asked := time.Now()
		info, err := j.get(ctx, max(min(poll, left), 0))
		switch {
		case err == nil && (info.State.Terminal() || time.Since(start) >= atMost):
			return info, nil
		case err == nil:
			answered = time.Now()
		case !worthRepeating(err) || time.Since(answered) > j.api.patience():
			return nil, err
		}
		// A server that is stopping answers at once.
		if quick++; time.Since(asked) > time.Second {
			quick = 0
		} else if !j.api.pause(ctx, quick, 0) {
			return nil, ctx.Err()
		}
	}
}

// Cancel asks for the job to be cancelled. What becomes of it shows in its
// state: a statement may have ended before it was reached.
func (j *Job) Cancel(ctx context.Context) (State, error) { return j.act(ctx, "/cancel") }

// Requeue has a job that has ended run again, as a new attempt.
func (j *Job) Requeue(ctx context.Context) (State, error) { return j.act(ctx, "/requeue") }

func (j *Job) act(ctx context.Context, what string) (State, error) {
	ref, _, err := answer[struct {
		State State `json:"state"`
	}](ctx, j.api, request{method: http.MethodPost, path: j.path() + what})
	return ref.State, err
}

// Forget removes a job that has ended, and its result.
func (j *Job) Forget(ctx context.Context) error {
	_, _, err := answer[any](ctx, j.api, request{method: http.MethodDelete, path: j.path()})
	return err
}

// Filter chooses jobs. Empty fields choose all.
type Filter struct {
	Client string
	State  State
	Labels map[string]string
	// Page is how many are asked for at once; the server's default if 0.
	Page int
}

// Jobs yields the jobs that the key may see, newest first.
func (a *API) Jobs(ctx context.Context, f Filter) iter.Seq2[*JobInfo, error] {
	query := optional("client", f.Client)
	if f.State != "" {
		query.Set("state", string(f.State))
	}
	if f.Page > 0 {
		query.Set("limit", strconv.Itoa(f.Page))
	}
	for name, value := range f.Labels {
		query.Add("label", name+"="+value)
	}
	return pages[*JobInfo](ctx, a, "/gateway/deferred", query)
}

// Jobs yields the client's jobs, newest first.
func (c *Client) Jobs(ctx context.Context, f Filter) iter.Seq2[*JobInfo, error] {
	f.Client = c.name
	return c.api.Jobs(ctx, f)
}

// pages yields the elements of a list that is asked for page by page.
func pages[T any](ctx context.Context, a *API, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			page, meta, err := answer[[]T](ctx, a, get(path, query))
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, v := range page {
				if !yield(v, nil) {
					return
				}
			}
			if meta.NextCursor == "" {
				return
			}
			query.Set("cursor", meta.NextCursor)
		}
	}
}

// seconds rounds up to whole seconds.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
