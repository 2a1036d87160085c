package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Findings are what a look at a client's backend brought.
type Findings struct {
	Client    string           `json:"client"`
	Engine    athena.Engine    `json:"engine"`
	Lifecycle athena.Lifecycle `json:"lifecycle"`
	Revision  uint64           `json:"revision"`
	Reachable bool             `json:"reachable"` // from this process
	OpenMS    float64          `json:"open_ms,omitempty"`
	PingMS    float64          `json:"ping_ms,omitempty"`
	Identity  *driver.Identity `json:"identity,omitempty"`
	Granted   []string         `json:"granted"`
	Supported []string         `json:"supported"`
	Excess    []string         `json:"excess"` // granted and not supported
	// Problems are in words; empty when all is well.
	Problems []string `json:"problems"`
}

// checkWithin bounds the whole look.
const checkWithin = 15 * time.Second

// checkClient looks at a client's backend on the road's rules, save that no
// capability is needed: a client that is not runnable opens no connection.
func (f *Family) checkClient(c *gin.Context) {
	name := c.Param("name")
	if err := allow(c, auth.Manage, auth.Write, name, params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), checkWithin)
	defer cancel()
	def, err := f.cfg.Dispatcher.Resolver.Client(ctx, name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	found := f.look(ctx, def)
	message := fmt.Sprintf("client %s: all is well", name)
	if n := len(found.Problems); n > 0 {
		message = fmt.Sprintf("client %s: %d problems, the first: %s", name, n, found.Problems[0])
	}
	envelope.OK(c, message, found, envelope.Of(def))
}

func (f *Family) look(ctx context.Context, def *athena.Client) *Findings {
	r := f.cfg.Dispatcher.Resolver
	supports := r.Supports(def.Engine())
	excess := def.Capabilities.Minus(supports)
	found := &Findings{
		Client: def.Name, Engine: def.Engine(), Lifecycle: def.Lifecycle, Revision: def.Revision,
		Granted: names(def.Capabilities), Supported: names(supports), Excess: names(excess), Problems: []string{},
	}
	switch {
	case supports == 0:
		found.problem("engine %s is not in this build", def.Engine())
	case excess != 0:
		found.problem("the definition grants what engine %s cannot do: %s", def.Engine(), excess)
	}
	if def.Capabilities == 0 {
		found.problem("the definition grants nothing, so that nothing can be done in the client's name")
	}
	if err := def.Runnable(); err != nil {
		found.problem("%s; no connection was opened", athena.AsError(err).Message)
		return found
	}
	if supports != 0 {
		found.dial(ctx, r, def)
	}
	return found
}

func (found *Findings) dial(ctx context.Context, r dispatch.Resolver, def *athena.Client) {
	start := time.Now()
	b, release, err := r.Backend(ctx, def)
	if err != nil {
		found.problem("%s", athena.AsError(err).Message)
		return
	}
	defer release()
	found.OpenMS = milliseconds(start)
	start = time.Now()
	if err := b.Ping(ctx); err != nil {
		found.problem("the backend does not answer: %s", athena.AsError(dispatch.Normalize(b, err)).Message)
		return
	}
	found.PingMS, found.Reachable = milliseconds(start), true
	who, ok := b.(driver.Identifier)
	if !ok {
		return
	}
	id, err := who.Identity(ctx)
	if err != nil {
		found.problem("the backend does not say what it is: %s", athena.AsError(dispatch.Normalize(b, err)).Message)
		return
	}
	found.Identity = &id
}

func (found *Findings) problem(format string, args ...any) {
	found.Problems = append(found.Problems, fmt.Sprintf(format, args...))
}

func names(s athena.Capabilities) []string {
	list := []string{}
	for _, c := range s.List() {
		list = append(list, c.String())
	}
	return list
}

func milliseconds(since time.Time) float64 {
	return float64(time.Since(since).Microseconds()) / 1000
}
