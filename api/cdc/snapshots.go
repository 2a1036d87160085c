package cdc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// mostSnapshots is how many of a client may be asked for and not done.
const mostSnapshots = 100

// requested is the state of a snapshot that no worker has begun.
const requested = "requested"

// snapshotID sorts by time.
func snapshotID(now time.Time) string { return fmt.Sprintf("%012x%s", now.UnixMilli(), nuid.Next()) }

// addSnapshot asks for the rows of tables as they are now, among the changes.
func (f *Family) addSnapshot(c *gin.Context) {
	if !allowed(c, changing, params.None(c)) {
		return
	}
	var body struct {
		Tables []driver.TableName `json:"tables"`
		Where  string             `json:"where"`
	}
	err := envelope.Decode(c, &body)
	switch {
	case err != nil:
	case len(body.Tables) == 0:
		err = athena.Errorf(athena.CodeInvalidRequest, "tables is missing; name at least one that is captured, such as public.orders").At("tables")
	case len(body.Where) > 16<<10:
		err = athena.Errorf(athena.CodeInvalidRequest, "where has %d bytes; the most is %d", len(body.Where), 16<<10).At("where")
	}
	if err == nil && body.Where != "" {
		// A condition may ask any table that the client's role can read.
		err = auth.FromContext(c.Request.Context()).Authorize(auth.Query, auth.Read, c.Param("client"))
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	client := f.client(c, changing)
	if client == nil {
		return
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	r := changefeed.SnapshotRequest{ID: snapshotID(now), Client: client.Name, At: now}
	for _, t := range body.Tables {
		r.Tables = append(r.Tables, driver.SnapshotTable{Table: t, Where: body.Where})
	}
	if err := f.request(c.Request.Context(), r); err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.Accepted(c, "/cdc/"+client.Name+"/snapshots", "a worker reads the rows", shown(r), envelope.Of(client))
}

func (f *Family) request(ctx context.Context, r changefeed.SnapshotRequest) error {
	capture, ok := f.cfg.Store.Capture(r.Client)
	switch {
	case !ok:
		return notCaptured(r.Client)
	case capture.Removing:
		return athena.Errorf(athena.CodeConflict, "the capture of client %q is being removed", r.Client)
	case len(f.cfg.Store.SnapshotRequests(r.Client)) >= mostSnapshots:
		return athena.Errorf(athena.CodeTooManyRequests, "client %q has %d snapshots that are not done, which is the most", r.Client, mostSnapshots).RetryIn(10 * time.Second)
	}
	for i, t := range r.Tables {
		if !slices.Contains(capture.Tables, t.Table) {
			return athena.Errorf(athena.CodeInvalidRequest, "table %s is not captured; the tables are named by POST /cdc/%s/enable", t.Table, r.Client).At(fmt.Sprintf("tables[%d]", i))
		}
	}
	return f.cfg.Store.PutSnapshot(ctx, r)
}

// shown is a request that no worker has begun, as progress.
func shown(r changefeed.SnapshotRequest) changefeed.SnapshotProgress {
	p := changefeed.SnapshotProgress{ID: r.ID, State: requested, At: r.At}
	for _, t := range r.Tables {
		p.Tables = append(p.Tables, changefeed.TableProgress{SnapshotTable: t})
	}
	return p
}

// listSnapshots answers with the snapshots that are asked for, and those whose
// progress the stream still holds, in the order of their ids.
func (f *Family) listSnapshots(c *gin.Context) {
	if !allowed(c, knowing, params.None(c)) {
		return
	}
	client := f.client(c, knowing)
	if client == nil {
		return
	}
	told, err := f.cfg.Store.SnapshotProgress(c.Request.Context(), client.Name)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	list := some(told)
	for _, r := range f.cfg.Store.SnapshotRequests(client.Name) {
		if !slices.ContainsFunc(list, func(p changefeed.SnapshotProgress) bool { return p.ID == r.ID }) {
			list = append(list, shown(r))
		}
	}
	slices.SortFunc(list, func(a, b changefeed.SnapshotProgress) int { return cmp.Compare(a.ID, b.ID) })
	envelope.OK(c, fmt.Sprintf("%d snapshots", len(list)), list, envelope.Of(client))
}

// cancelSnapshot takes a request back. A worker that is at it stops behind the
// chunk that it reads; what was read stays in the stream.
func (f *Family) cancelSnapshot(c *gin.Context) {
	if !allowed(c, settling, params.None(c)) {
		return
	}
	client := f.client(c, settling)
	if client == nil {
		return
	}
	id := c.Param("id")
	if !slices.ContainsFunc(f.cfg.Store.SnapshotRequests(client.Name), func(r changefeed.SnapshotRequest) bool { return r.ID == id }) {
		envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "client %q has no snapshot %.80q that is asked for and not done", client.Name, id))
		return
	}
	if err := f.cfg.Store.ForgetSnapshot(c.Request.Context(), client.Name, id); err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, "the snapshot was cancelled", map[string]string{"id": id}, envelope.Of(client))
}
