package deferred

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A Request is the body of POST /gateway/query. The fields below Deferred are
// for deferred queries and refused in synchronous ones.
type Request struct {
	Query    string            `json:"query"`
	Params   []json.RawMessage `json:"params,omitempty"`
	Language driver.Language   `json:"language,omitempty"`
	Timeout  athena.Duration   `json:"timeout,omitempty"`
	RowLimit int64             `json:"row_limit,omitempty"`
	Deferred bool              `json:"deferred,omitempty"`

	Priority   Lane              `json:"priority,omitempty"`
	NotBefore  *time.Time        `json:"not_before,omitempty"`
	Deadline   *time.Time        `json:"deadline,omitempty"`
	Idempotent bool              `json:"idempotent,omitempty"`
	Result     *ResultSpec       `json:"result,omitempty"`
	Webhook    *Webhook          `json:"webhook,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// ResultSpec says how the result is kept.
type ResultSpec struct {
	Format Format          `json:"format,omitempty"`
	TTL    athena.Duration `json:"ttl,omitempty"`
	// To has the rows go to objects of a client, as parquet unless Format says
	// otherwise.
	To *Destination `json:"to,omitempty"`
}

// Bounds are the deployment's limits for jobs. A zero field stands for its
// default.
type Bounds struct {
	Deadline    time.Duration // of a job that names none; 24 h
	MaxDeadline time.Duration // how far ahead one may lie; 7 days
	ResultTTL   time.Duration // of a job that names none; 24 h
	MaxQuery    int           // bytes of a statement; 1 MiB
}

// WithDefaults returns b with its zero fields filled in.
func (b Bounds) WithDefaults() Bounds {
	if b.Deadline == 0 {
		b.Deadline = 24 * time.Hour
	}
	if b.MaxDeadline == 0 {
		b.MaxDeadline = 7 * 24 * time.Hour
	}
	if b.ResultTTL == 0 {
		b.ResultTTL = 24 * time.Hour
	}
	if b.MaxQuery == 0 {
		b.MaxQuery = 1 << 20
	}
	return b
}

// MaxParams is the most parameters of one statement, which is what PostgreSQL's
// protocol can count.
const MaxParams = 65535

// Check reports the first thing wrong with what every query has.
func (r *Request) Check(lang driver.Language, limits athena.Limits, b Bounds) error {
	b, limits = b.WithDefaults(), limits.WithDefaults()
	switch {
	case r.Query == "":
		return athena.Errorf(athena.CodeInvalidRequest, "query is missing; give a statement").At("query")
	case len(r.Query) > b.MaxQuery:
		return athena.Errorf(athena.CodePayloadTooLarge, "query has %d bytes; the most is %d; pass large values as params", len(r.Query), b.MaxQuery).At("query")
	case len(r.Params) > MaxParams:
		return athena.Errorf(athena.CodeInvalidRequest, "params has %d values; the most is %d", len(r.Params), MaxParams).At("params")
	case r.Language != "" && r.Language != lang:
		return athena.Errorf(athena.CodeInvalidRequest, "language is %q; this client understands %q", r.Language, lang).At("language")
	case r.Timeout > limits.StatementTimeout:
		return athena.Errorf(athena.CodeInvalidRequest, "timeout is %s; this client's limit is %s", r.Timeout, limits.StatementTimeout).At("timeout")
	case r.RowLimit < 0:
		return athena.Errorf(athena.CodeInvalidRequest, "row_limit is %d; it must be positive, or absent for no limit", r.RowLimit).At("row_limit")
	}
	return nil
}

// CheckSync reports a field that only a deferred query may have.
func (r *Request) CheckSync() error {
	for field, set := range map[string]bool{
		"priority": r.Priority != "", "not_before": r.NotBefore != nil, "deadline": r.Deadline != nil,
		"idempotent": r.Idempotent, "result": r.Result != nil, "webhook": r.Webhook != nil, "labels": r.Labels != nil,
	} {
		if set {
			return athena.Errorf(athena.CodeInvalidRequest, "%s is for deferred queries; send \"deferred\": true or the header Prefer: respond-async", field).At(field)
		}
	}
	return nil
}

var label = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`)

// Job makes the job that r asks for, or says what is wrong with it. The
// idempotency key may be empty.
func (r *Request) Job(c *athena.Client, p *auth.Principal, lang driver.Language, idempotencyKey string, b Bounds, now time.Time) (*Job, error) {
	b = b.WithDefaults()
	limits := c.Limits.WithDefaults()
	if err := r.Check(lang, limits, b); err != nil {
		return nil, err
	}
	j := &Job{
		Client: c.Name, Engine: c.Engine(), Lane: r.Priority, Query: r.Query, Params: r.Params, Language: lang,
		Timeout: r.Timeout, RowLimit: r.RowLimit, Idempotent: r.Idempotent, Format: JSON,
		ResultTTL: athena.Duration(b.ResultTTL), Deadline: now.Add(b.Deadline), Webhook: r.Webhook,
		Labels: r.Labels, Principal: p, SubmittedAt: now,
	}
	if j.Lane == "" {
		j.Lane = Normal
	}
	if !slices.Contains(Lanes(), j.Lane) {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "priority is %q; it must be interactive, normal or batch", j.Lane).At("priority")
	}
	if j.Timeout == 0 {
		j.Timeout = limits.StatementTimeout
	}
	if r.NotBefore != nil {
		j.NotBefore = r.NotBefore.UTC()
		if j.NotBefore.After(now.Add(b.MaxDeadline)) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "not_before is %s; it may lie at most %s ahead", j.NotBefore.Format(time.RFC3339), b.MaxDeadline).At("not_before")
		}
		if j.NotBefore.After(now) {
			j.Deadline = j.NotBefore.Add(b.Deadline)
		}
	}
	if r.Deadline != nil {
		j.Deadline = r.Deadline.UTC()
	}
	switch {
	case !j.Deadline.After(now):
		return nil, athena.Errorf(athena.CodeInvalidRequest, "deadline is %s, which has passed", j.Deadline.Format(time.RFC3339)).At("deadline")
	case !j.Deadline.After(j.NotBefore):
		return nil, athena.Errorf(athena.CodeInvalidRequest, "deadline is %s, which is not after not_before", j.Deadline.Format(time.RFC3339)).At("deadline")
	case j.Deadline.After(now.Add(b.MaxDeadline)) && r.Deadline != nil:
		return nil, athena.Errorf(athena.CodeInvalidRequest, "deadline is %s; it may lie at most %s ahead", j.Deadline.Format(time.RFC3339), b.MaxDeadline).At("deadline")
	}
	if r.Result != nil {
		if err := r.Result.apply(j, b); err != nil {
			return nil, err
		}
	}
	if len(r.Labels) > 16 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "labels has %d entries; the most is 16", len(r.Labels)).At("labels")
	}
	for k, v := range r.Labels {
		if !label.MatchString(k) || v != "" && !label.MatchString(v) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "label %.80q=%.80q is not allowed; names and values have at most 63 of letters, digits and . _ / -, and start with a letter or digit", k, v).At("labels")
		}
	}
	if len(idempotencyKey) > 255 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the header Idempotency-Key has %d bytes; the most is 255", len(idempotencyKey)).At("Idempotency-Key")
	}
	if idempotencyKey == "" {
		j.ID = uuid.Must(uuid.NewV7()).String()
		return j, nil
	}
	j.ID = KeyedID(c.Name, idempotencyKey)
	j.Digest = r.digest()
	return j, nil
}

func (s *ResultSpec) apply(j *Job, b Bounds) error {
	if s.Format != "" {
		j.Format = s.Format
	}
	allowed := []Format{JSON, NDJSON, CSV}
	if s.To != nil {
		if j.To = s.To; s.Format == "" {
			j.Format = Parquet
		}
		allowed = []Format{Parquet, NDJSON, CSV}
		if err := s.To.check(); err != nil {
			return err
		}
	}
	switch {
	case j.Format == Parquet && s.To == nil:
		return athena.Errorf(athena.CodeInvalidRequest, "result.format is parquet, which is for results that go to objects; name a client and a prefix in result.to").At("result.format")
	case !slices.Contains(allowed, j.Format):
		return athena.Errorf(athena.CodeInvalidRequest, "result.format is %q; it must be one of %q", s.Format, allowed).At("result.format")
	}
	if s.TTL != 0 {
		j.ResultTTL = s.TTL
	}
	if ttl := j.ResultTTL.Std(); ttl < time.Minute || ttl > b.MaxDeadline {
		return athena.Errorf(athena.CodeInvalidRequest, "result.ttl is %s; it must be between 1m and %s", j.ResultTTL, b.MaxDeadline).At("result.ttl")
	}
	return nil
}

func (d *Destination) check() error {
	if d.Client == "" {
		return athena.Errorf(athena.CodeInvalidRequest, "result.to.client is missing; name the client whose objects the rows go to").At("result.to.client")
	}
	if _, err := driver.CleanKey("", d.Prefix+"rows"); err != nil {
		return athena.Wrap(athena.CodeInvalidRequest, err, "result.to.prefix is %.80q, which no key can begin with: %s", d.Prefix, athena.AsError(err).Message).At("result.to.prefix")
	}
	return nil
}

// digest identifies the request's content.
func (r *Request) digest() string {
	raw, err := json.Marshal(r)
	if err != nil {
		// Params were decoded as JSON, and nothing else in it can fail.
		panic(fmt.Sprintf("deferred: a decoded request does not encode: %v", err))
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// keySpace is the name space of ids that are made from idempotency keys.
var keySpace = uuid.MustParse("6a0c94f1-6c0a-4f0e-9d0b-1f6f1a6f3f55")

// KeyedID is the id of the job that was submitted to a client under an
// idempotency key: UUIDv5 of both.
func KeyedID(client, key string) string {
	return uuid.NewSHA1(keySpace, []byte(client+"\x00"+key)).String()
}

// CheckID reports whether id can be a job's id.
func CheckID(id string) error {
	if u, err := uuid.Parse(id); err != nil || u.String() != id {
		return athena.Errorf(athena.CodeNotFound, "there is no job %.80q", id)
	}
	return nil
}
