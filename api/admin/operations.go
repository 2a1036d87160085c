package admin

import (
	"context"
	"fmt"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/ops"
)

func (f *Family) listChanges(c *gin.Context) {
	ctx := c.Request.Context()
	p := auth.FromContext(ctx)
	q := params.Of(c)
	client := q.Client("client")
	filter := ops.Filter{Clients: p.Clients, Actor: q.String("actor"), Since: q.Time("since")}
	if client != "" {
		filter.Clients = []string{client}
	}
	at := f.page(q, "audit", client, filter.Actor, filter.Since.UTC().String())
	limit := q.Int("limit", 100, 1, 1000)
	if err := allow(c, auth.Admin, auth.Read, client, q.Err()); err != nil {
		envelope.Fail(c, err)
		return
	}
	list, next, err := f.cfg.Audit.Read(ctx, filter, at.cursor, limit)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	if list == nil {
		list = []ops.Change{}
	}
	envelope.OK(c, fmt.Sprintf("%d changes", len(list)), list, envelope.Meta{NextCursor: at.sign(next)})
}

func (f *Family) listDead(c *gin.Context) {
	q := params.Of(c)
	kind := q.String("kind")
	at := f.page(q, "dead", kind)
	limit := q.Int("limit", 100, 1, 1000)
	if err := unbound(c, auth.Read, q.Err()); err != nil {
		envelope.Fail(c, err)
		return
	}
	list, next, err := f.cfg.Dead.List(c.Request.Context(), kind, at.cursor, limit)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	if list == nil {
		list = []DeadLetter{}
	}
	envelope.OK(c, fmt.Sprintf("%d dead letters", len(list)), list, envelope.Meta{NextCursor: at.sign(next)})
}

func (f *Family) deleteDead(c *gin.Context) {
	if err := unbound(c, auth.Write, params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	text := c.Param("seq")
	seq, err := strconv.ParseUint(text, 10, 63)
	if err != nil || seq == 0 {
		envelope.Fail(c, athena.Errorf(athena.CodeInvalidRequest, "the path names dead letter %.80q; it must be a whole number from 1", text).At("seq"))
		return
	}
	err = f.cfg.Audit.Do(c.Request.Context(), ops.Change{Action: "dead.delete", Target: text}, func(ctx context.Context) error {
		return f.cfg.Dead.Delete(ctx, seq)
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("dead letter %d was deleted", seq), map[string]uint64{"seq": seq}, envelope.Meta{})
}

// unbound lets only an admin pass whose key is bound to no clients: dead letters
// hold what belongs to any of them.
func unbound(c *gin.Context, access auth.Access, bad error) error {
	if err := allow(c, auth.Admin, access, "", nil); err != nil {
		return err
	}
	if len(auth.FromContext(c.Request.Context()).Clients) > 0 {
		return athena.Errorf(athena.CodeForbidden, "this key is bound to clients, and dead letters are of all of them")
	}
	return bad
}

var provisioning = dispatch.Op{Family: "management", Right: auth.Manage, Needs: []athena.Capability{athena.Provisioning}}

func (f *Family) provision(c *gin.Context) {
	name := c.GetHeader(middleware.HeaderClient)
	if err := allow(c, auth.Manage, auth.Write, name, params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	var want driver.Provision
	err := envelope.Decode(c, &want)
	switch {
	case err != nil:
	case want.Kind == "":
		err = athena.Errorf(athena.CodeInvalidRequest, "kind is missing; it must be schema, database, keyspace or bucket").At("kind")
	case want.Name == "" || !params.Printable(want.Name):
		err = athena.Errorf(athena.CodeInvalidRequest, "name is missing, or holds control characters").At("name")
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	var meta envelope.Meta
	done, err := dispatch.Do(c.Request.Context(), f.cfg.Dispatcher, provisioning, name,
		func(ctx context.Context, call dispatch.Call, b driver.Provisioner) (done driver.Provisioned, err error) {
			meta = envelope.Of(call.Client)
			ctx, cancel := context.WithTimeout(ctx, call.Client.Limits.WithDefaults().StatementTimeout.Std())
			defer cancel()
			change := ops.Change{Action: "provision", Client: name, Target: want.Kind + " " + want.Name}
			err = f.cfg.Audit.Do(ctx, change, func(ctx context.Context) (err error) {
				done, err = b.Provision(ctx, want)
				return err
			})
			return done, err
		})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	message := fmt.Sprintf("%s %s was there", want.Kind, want.Name)
	if done.Created {
		message = fmt.Sprintf("%s %s was made", want.Kind, want.Name)
	}
	envelope.OK(c, message, done, meta)
}
