package gateway

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// MaxWait bounds how long a caller may have an answer waited for.
const MaxWait = 60 * time.Second

// query is a statement as it was asked for.
type query struct {
	deferred.Request
	client   string
	raw      bool
	deferred bool
	dry      bool
	wait     time.Duration // for a deferred one: how long the caller waits for rows
	prefer   preference
	key      string // the idempotency key
}

// query handles the routes that take a statement.
func (f *Family) query(raw bool) gin.HandlerFunc {
	return func(c *gin.Context) {
		q, err := readQuery(c, raw)
		switch {
		case err != nil:
			envelope.Fail(c, err)
		case q.dry:
			f.dryRun(c, q)
		case q.deferred:
			f.submit(c, q)
		default:
			f.run(c, q)
		}
	}
}

func readQuery(c *gin.Context, raw bool) (q *query, err error) {
	q = &query{raw: raw}
	p := params.Of(c)
	q.dry = p.Bool("dry_run")
	if err := p.Err(); err != nil {
		return nil, err
	}
	if q.client, err = client(c); err != nil {
		return nil, err
	}
	if q.prefer, err = preferences(c.Request.Header.Values("Prefer")); err != nil {
		return nil, err
	}
	if err := envelope.Decode(c, &q.Request); err != nil {
		return nil, err
	}
	if l := q.Language; l != "" && l != driver.SQL && l != driver.CQL {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "language is %.40q; it must be sql or cql", string(l)).At("language")
	}
	q.deferred = q.Deferred || q.prefer.async
	if q.deferred {
		q.wait = q.prefer.wait
	} else if err := q.CheckSync(); err != nil {
		return nil, err
	}
	q.key, err = idempotencyKey(c, q.deferred)
	return q, err
}

// client reads the header that names the client; empty if it is absent.
func client(c *gin.Context) (string, error) {
	name := c.GetHeader(middleware.HeaderClient)
	if name != "" && athena.CheckName(name) != nil {
		return "", athena.Errorf(athena.CodeInvalidRequest, "the header %s is %.80q, which cannot be a client's name", middleware.HeaderClient, name).At(middleware.HeaderClient)
	}
	return name, nil
}

func idempotencyKey(c *gin.Context, isDeferred bool) (string, error) {
	const header = "Idempotency-Key"
	values := c.Request.Header.Values(header)
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	switch {
	case !isDeferred:
		return "", athena.Errorf(athena.CodeInvalidRequest, "%s is for deferred queries; send the header Prefer: respond-async as well, or leave the key out", header).At(header)
	case strings.TrimSpace(key) == "":
		return "", athena.Errorf(athena.CodeInvalidRequest, "%s is empty; give 1 to 255 bytes", header).At(header)
	}
	return key, nil
}

// preference is what the header Prefer (RFC 7240) asks for. Preferences that
// are not known are ignored, as the RFC wants it.
type preference struct {
	async bool
	wait  time.Duration
}

func preferences(values []string) (p preference, err error) {
	waited := false
	for item := range strings.SplitSeq(strings.Join(values, ","), ",") {
		item, _, _ = strings.Cut(item, ";") // parameters: none is known
		name, value, _ := strings.Cut(item, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "respond-async":
			p.async = true
		case "wait":
			seconds, err := strconv.ParseUint(value, 10, 31)
			if err != nil {
				return p, athena.Errorf(athena.CodeInvalidRequest, "the header Prefer has wait=%.40q; it must be a whole number of seconds", value).At("Prefer")
			}
			if !waited { // the first one counts
				p.wait, waited = min(time.Duration(seconds)*time.Second, MaxWait), true
			}
		}
	}
	return p, nil
}

// applied is the header Preference-Applied of an answer that came at once, or
// was waited for.
func (p preference) applied(async bool) string {
	var list []string
	if async && p.async {
		list = append(list, "respond-async")
	}
	if p.wait > 0 {
		list = append(list, "wait="+strconv.Itoa(int(p.wait/time.Second)))
	}
	return strings.Join(list, ", ")
}

// language is that of the statement: what the body says, else what the client's
// engine understands. Where the client is not known it does not matter; the
// road will say so.
func (f *Family) language(ctx context.Context, q *query) driver.Language {
	if q.Language != "" {
		return q.Language
	}
	if c, err := f.cfg.Dispatcher.Resolver.Client(ctx, q.client); err == nil {
		if l := f.cfg.Drivers[c.Engine()].Language; l != "" {
			return l
		}
	}
	return driver.SQL
}

// analyze judges a statement by its text.
func (f *Family) analyze(c *athena.Client, text string) (driver.Analysis, error) {
	analyze := f.cfg.Drivers[c.Engine()].Analyze
	if analyze == nil {
		return driver.Analysis{}, athena.Unsupported(c.Name, c.Engine(), athena.GatewayQuery)
	}
	a := analyze(text)
	if a.Effect == driver.Refused {
		return a, athena.Errorf(athena.CodeInvalidRequest, "%s", a.Reason).At("query")
	}
	return a, nil
}

// readsOnly reports whether the key may only read: its statements are held to
// reading by the engine, whatever their text says.
func readsOnly(p *auth.Principal) bool { return !p.May(auth.Query, auth.Write) }

func errReadsOnly() error {
	return athena.Errorf(athena.CodeForbidden, "the statement writes, and this key may only read").With("right", string(auth.Query))
}
