package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/ops"
)

func (f *Family) listClients(c *gin.Context) {
	ctx := c.Request.Context()
	p := auth.FromContext(ctx)
	if err := allow(c, auth.Manage, auth.Read, "", params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	list, err := f.cfg.Clients.List(ctx)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	seen := []*athena.Client{}
	for _, def := range list {
		if p.MayActAs(def.Name) {
			seen = append(seen, def)
		}
	}
	envelope.OK(c, fmt.Sprintf("%d clients", len(seen)), seen, envelope.Meta{})
}

func (f *Family) getClient(c *gin.Context) {
	name := c.Param("name")
	if err := allow(c, auth.Manage, auth.Read, name, params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	def, err := f.cfg.Clients.Client(c.Request.Context(), name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	if slices.Contains(etags(c.GetHeader("If-None-Match")), etag(def.Revision)) {
		c.Header("ETag", etag(def.Revision))
		c.Status(http.StatusNotModified)
		return
	}
	show(c, http.StatusOK, fmt.Sprintf("client %s", name), def)
}

func (f *Family) putClient(c *gin.Context) {
	ctx, name := c.Request.Context(), c.Param("name")
	if err := allow(c, auth.Manage, auth.Write, name, params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	def, err := decodeClient(c, name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	expected, err := f.expected(c, name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	old, err := f.cfg.Clients.Client(ctx, name)
	if err != nil && athena.CodeOf(err) != athena.CodeClientNotFound {
		envelope.Fail(c, err)
		return
	}
	change, err := changeOf(old, def)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	var stored *athena.Client
	err = f.cfg.Audit.Do(ctx, change, func(ctx context.Context) (err error) {
		stored, err = f.cfg.Clients.Put(ctx, def, expected)
		return err
	})
	switch {
	case err != nil:
		envelope.Fail(c, err)
	case old == nil:
		c.Header("Location", "/admin/clients/"+name)
		show(c, http.StatusCreated, fmt.Sprintf("client %s was made", name), stored)
	default:
		show(c, http.StatusOK, fmt.Sprintf("client %s was changed", name), stored)
	}
}

// changeOf is what the audit says of a new definition. A secret that is given
// as athena.Redacted is the one that is stored.
func changeOf(old, def *athena.Client) (ops.Change, error) {
	change := ops.Change{Action: "client.put", Client: def.Name, Details: ops.Details{After: def.Lifecycle}}
	next := *def
	if old != nil {
		change.Details.Before, change.Details.Revision = old.Lifecycle, old.Revision
		kept := map[string]athena.Secret{}
		if _, err := old.Connection.MapSecrets(func(path string, s athena.Secret) (athena.Secret, error) {
			kept[path] = s
			return s, nil
		}); err != nil {
			return change, err
		}
		var err error
		if next.Connection, err = def.Connection.MapSecrets(func(path string, s athena.Secret) (athena.Secret, error) {
			if s.Reveal() == athena.Redacted {
				return kept[path], nil
			}
			return s, nil
		}); err != nil {
			return change, err
		}
	}
	var err error
	change.Details.Fields, err = ops.Fields(old, &next)
	return change, err
}

func (f *Family) setLifecycle(c *gin.Context) {
	name := c.Param("name")
	if err := allow(c, auth.Manage, auth.Write, name, params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	var body struct {
		Lifecycle athena.Lifecycle `json:"lifecycle"`
	}
	if err := envelope.Decode(c, &body); err != nil {
		envelope.Fail(c, err)
		return
	}
	if body.Lifecycle == "" {
		envelope.Fail(c, athena.Errorf(athena.CodeInvalidRequest, "lifecycle is missing; it must be active, frozen or inactive").At("lifecycle"))
		return
	}
	expected, err := f.expected(c, name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	ctx := c.Request.Context()
	old, err := f.cfg.Clients.Client(ctx, name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	change := ops.Change{Action: "client.lifecycle", Client: name,
		Details: ops.Details{Before: old.Lifecycle, After: body.Lifecycle, Revision: old.Revision, Fields: []string{"lifecycle"}}}
	stored := old
	err = f.cfg.Audit.Do(ctx, change, func(ctx context.Context) (err error) {
		stored, err = f.cfg.Clients.SetLifecycle(ctx, name, body.Lifecycle, expected)
		return err
	})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	show(c, http.StatusOK, fmt.Sprintf("client %s is %s", name, stored.Lifecycle), stored)
}

func (f *Family) deleteClient(c *gin.Context) {
	name := c.Param("name")
	if err := allow(c, auth.Manage, auth.Write, name, params.None(c)); err != nil {
		envelope.Fail(c, err)
		return
	}
	expected, err := f.expected(c, name)
	if err == nil && expected == catalog.Absent {
		err = athena.Errorf(athena.CodeInvalidRequest, "If-None-Match has no meaning with DELETE; use If-Match").At("If-None-Match")
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	ctx := c.Request.Context()
	old, err := f.cfg.Clients.Client(ctx, name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	if f.cfg.InUse != nil {
		if err := f.cfg.InUse(name); err != nil {
			envelope.Fail(c, err)
			return
		}
	}
	change := ops.Change{Action: "client.delete", Client: name, Details: ops.Details{Before: old.Lifecycle, Revision: old.Revision}}
	if err := f.cfg.Audit.Do(ctx, change, func(ctx context.Context) error {
		return f.cfg.Clients.Delete(ctx, name, expected)
	}); err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("client %s was deleted", name), map[string]string{"client_name": name}, envelope.Meta{})
}

// allow holds the order of an admin route's checks: the right, the client's
// binding, then the parameters.
func allow(c *gin.Context, right auth.Right, access auth.Access, client string, bad error) error {
	if err := auth.FromContext(c.Request.Context()).Authorize(right, access, client); err != nil {
		return err
	}
	return bad
}

func show(c *gin.Context, status int, message string, def *athena.Client) {
	c.Header("ETag", etag(def.Revision))
	envelope.Write(c, status, message, def, envelope.Of(def))
}

// decodeClient reads a definition that may leave its name to the path.
func decodeClient(c *gin.Context, name string) (*athena.Client, error) {
	raw, err := envelope.Body(c)
	if err != nil {
		return nil, err
	}
	if err := athena.CheckName(name); err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := athena.DecodeJSON(raw, &fields, ""); err != nil {
		return nil, err
	}
	if fields == nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the body is null; it must be a client definition")
	}
	if _, ok := fields["client_name"]; !ok {
		fields["client_name"], _ = json.Marshal(name)
		if raw, err = json.Marshal(fields); err != nil {
			return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the body cannot be read")
		}
	}
	def, err := athena.DecodeClient(raw)
	if err != nil {
		return nil, err
	}
	if def.Name != name {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "client_name is %q, and the path names %q; leave it out or make them equal", def.Name, name).At("client_name")
	}
	return def, nil
}

// expected reads what the change is made against: a revision, nothing there, or
// whatever there is.
func (f *Family) expected(c *gin.Context, name string) (catalog.Expect, error) {
	match, none := c.GetHeader("If-Match"), c.GetHeader("If-None-Match")
	switch {
	case match != "" && none != "":
		return 0, athena.Errorf(athena.CodeInvalidRequest, "If-Match and If-None-Match exclude each other; give one").At("If-Match")
	case none == "*":
		return catalog.Absent, nil
	case none != "":
		return 0, athena.Errorf(athena.CodeInvalidRequest, "If-None-Match is %.80q; only * is understood in a change", none).At("If-None-Match")
	case match == "":
		return catalog.Any, nil
	case match == "*":
		def, err := f.cfg.Clients.Client(c.Request.Context(), name)
		if err != nil {
			return 0, err
		}
		return catalog.Expect(def.Revision), nil
	}
	text, ok := strings.CutPrefix(match, `"`)
	text, closed := strings.CutSuffix(text, `"`)
	revision, err := strconv.ParseUint(text, 10, 63)
	if !ok || !closed || err != nil || revision == 0 {
		return 0, athena.Errorf(athena.CodeInvalidRequest, "If-Match is %.80q; give one ETag as it was read, such as \"12\"", match).At("If-Match")
	}
	return catalog.Expect(revision), nil
}

func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

func etags(header string) []string {
	list := strings.Split(header, ",")
	for i := range list {
		list[i] = strings.TrimPrefix(strings.TrimSpace(list[i]), "W/")
	}
	return list
}
