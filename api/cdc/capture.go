package cdc

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// A view is a capture as it is shown.
type view struct {
	// Capture is absent where there is only the stream of an earlier one.
	Capture *changefeed.Capture `json:"capture,omitempty"`
	// Revision is that of the capture, for If-Match.
	Revision      uint64             `json:"revision,omitempty"`
	Status        *changefeed.Status `json:"status,omitempty"`
	Stream        *extent            `json:"stream,omitempty"` // absent where there is none, and in lists
	Subscriptions int                `json:"subscriptions"`
}

// extent is what is kept of a client's changes.
type extent struct {
	Messages uint64          `json:"messages"`
	Bytes    uint64          `json:"bytes"`
	MaxBytes int64           `json:"max_bytes"`
	MaxAge   athena.Duration `json:"max_age"`
	First    cdc.Position    `json:"first_position,omitempty"`
	Last     cdc.Position    `json:"last_position,omitempty"`
	Oldest   time.Time       `json:"oldest,omitzero"`
}

// silence is how long nothing is heard of a capture before it counts as one that
// no worker has.
const silence = 30 * time.Second

func (f *Family) view(c changefeed.Capture) view {
	st := f.status(c, time.Now())
	return view{Capture: &c, Revision: c.Revision, Status: &st, Subscriptions: len(f.cfg.Store.Subscriptions(c.Client))}
}

// status is how a capture fares: as its worker has told, as long as it tells.
func (f *Family) status(c changefeed.Capture, now time.Time) changefeed.Status {
	st, told := f.cfg.Store.Status(c.Client)
	if !told || st.Capture != c.ID {
		st = changefeed.Status{Capture: c.ID, Client: c.Client, At: c.CreatedAt}
	}
	if now.Sub(st.At) > silence || st.State == "" {
		st.State, st.Worker, st.Progress = changefeed.Waiting, "", ""
		if now.Sub(st.At) > silence {
			st.Cause = &changefeed.Cause{
				Code:    "no_worker",
				Message: fmt.Sprintf("no worker has told of this capture since %s", st.At.UTC().Format(time.RFC3339)),
				Runbook: "start a worker that has the client's secrets and can reach its database, or see why the one that had it does not",
				Since:   st.At,
			}
		}
	}
	if c.Removing {
		st.State = changefeed.Removing
	}
	return st
}

func (f *Family) extent(ctx context.Context, client string) (*extent, error) {
	e, err := f.cfg.Store.Extent(ctx, client)
	if e == nil || err != nil {
		return nil, err
	}
	return &extent{e.Messages, e.Bytes, e.MaxBytes, athena.Duration(e.MaxAge), e.First, e.Last, e.Oldest}, nil
}

// list answers with the captures of the clients that the key may see.
func (f *Family) list(c *gin.Context) {
	if !allowed(c, knowing, params.None(c)) {
		return
	}
	p, list := auth.FromContext(c.Request.Context()), []view{}
	for _, capture := range f.cfg.Store.Captures() {
		if p.MayActAs(capture.Client) {
			list = append(list, f.view(capture))
		}
	}
	envelope.OK(c, fmt.Sprintf("%d captures", len(list)), list, envelope.Meta{})
}

func (f *Family) get(c *gin.Context) {
	if !allowed(c, knowing, params.None(c)) {
		return
	}
	client := f.client(c, knowing)
	if client == nil {
		return
	}
	capture, ok := f.cfg.Store.Capture(client.Name)
	v := view{Subscriptions: len(f.cfg.Store.Subscriptions(client.Name))}
	if ok {
		v = f.view(capture)
	}
	var err error
	if v.Stream, err = f.extent(c.Request.Context(), client.Name); err == nil && !ok && v.Stream == nil {
		err = notCaptured(client.Name)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	message := "only the stream of an earlier capture is there"
	if ok {
		c.Header("ETag", etag(capture.Revision))
		message = "the capture is " + string(v.Status.State)
	}
	envelope.OK(c, message, v, envelope.Of(client))
}

func notCaptured(client string) error {
	return athena.Errorf(athena.CodeNotFound, "the changes of client %q are not captured; POST /cdc/%s/enable begins it", client, client)
}

// checked is what a check found.
type checked struct {
	OK bool `json:"ok"`
	driver.ChangeCheck
}

// check says what stands in the way of capturing, and changes nothing.
func (f *Family) check(c *gin.Context) {
	if !allowed(c, changing, params.None(c)) {
		return
	}
	want, err := decodeCapture(c)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	var meta envelope.Meta
	found, err := f.ask(c.Request.Context(), want, &meta)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	message := "nothing stands in the way"
	if !found.OK() {
		message = fmt.Sprintf("%d things stand in the way", len(faults(found)))
	}
	envelope.OK(c, message, checked{found.OK(), found}, meta)
}

// ask takes the road to the client's backend.
func (f *Family) ask(ctx context.Context, want changefeed.Capture, meta *envelope.Meta) (driver.ChangeCheck, error) {
	setup := want.Setup()
	if old, ok := f.cfg.Store.Capture(want.Client); ok && old.Slot == want.Slot {
		setup.TakeOver = true // the slot is its own, also while nobody reads it
	}
	return dispatch.Do(ctx, f.cfg.Dispatcher, changing, want.Client,
		func(ctx context.Context, call dispatch.Call, b driver.ChangeSource) (driver.ChangeCheck, error) {
			*meta = envelope.Of(call.Client)
			ctx, cancel := context.WithTimeout(ctx, call.Client.Limits.WithDefaults().StatementTimeout.Std())
			defer cancel()
			found, err := b.CheckChanges(ctx, setup)
			found.Findings, found.Tables = some(found.Findings), some(found.Tables)
			return found, err
		})
}

// faults are the findings that stand in the way.
func faults(found driver.ChangeCheck) []driver.ChangeFinding {
	return slices.DeleteFunc(slices.Clone(found.Findings), func(f driver.ChangeFinding) bool { return f.Level != "error" })
}

// some is l, and empty where it is nil, so that JSON has [] and not null.
func some[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// enable has a client's changes captured, or captured as is said now. It puts
// what is wanted: a field that is left out has its default.
func (f *Family) enable(c *gin.Context) {
	if !allowed(c, changing, params.None(c)) {
		return
	}
	want, err := decodeCapture(c)
	if err == nil {
		want.Revision, err = expected(c)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	var meta envelope.Meta
	ctx := c.Request.Context()
	found, err := f.ask(ctx, want, &meta)
	switch {
	case athena.CodeOf(err) == athena.CodeBackendUnavailable:
		// A worker reaches it, or will; what it finds is in the status.
		client, err := f.again.Check(ctx, changing, want.Client)
		if err != nil {
			envelope.Fail(c, err)
			return
		}
		meta = envelope.Of(client)
	case err != nil:
		envelope.Fail(c, err)
		return
	case !found.OK():
		list := faults(found)
		envelope.Fail(c, athena.Errorf(athena.CodeConflict, "%d things stand in the way of capturing client %q, the first: %s is %s; nothing was changed", len(list), want.Client, list[0].Name, list[0].Found).
			With("findings", list))
		return
	}
	stored, changed, err := f.put(ctx, want)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	v := f.view(stored)
	c.Header("ETag", etag(stored.Revision))
	if v.Stream, err = f.extent(ctx, want.Client); err != nil {
		envelope.Fail(c, err)
		return
	}
	if !changed {
		envelope.OK(c, "it is captured in this way already", v, meta)
		return
	}
	envelope.Accepted(c, "/cdc/"+want.Client, "a worker sets the capture up", v, meta)
}

// expected reads the revision that a capture is changed at; 0 is whatever it has.
func expected(c *gin.Context) (uint64, error) {
	match := c.GetHeader("If-Match")
	if match == "" || match == "*" {
		return 0, nil
	}
	text, opened := strings.CutPrefix(match, `"`)
	text, closed := strings.CutSuffix(text, `"`)
	revision, err := strconv.ParseUint(text, 10, 63)
	if !opened || !closed || err != nil || revision == 0 {
		return 0, athena.Errorf(athena.CodeInvalidRequest, "If-Match is %.80q; give one ETag as it was read, such as \"12\"", match).At("If-Match")
	}
	return revision, nil
}

func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// put stores what is wanted over what there is, which must be at the revision that
// is wanted, if one is.
func (f *Family) put(ctx context.Context, want changefeed.Capture) (stored changefeed.Capture, changed bool, err error) {
	old, exists := f.cfg.Store.Capture(want.Client)
	purge := want.Purge
	want.Purge = false // that of a capture is for its end
	action := ops.Change{Action: "cdc.enable", Client: want.Client, Target: want.Slot}
	if want.Revision != 0 && want.Revision != old.Revision {
		return old, false, athena.Errorf(athena.CodeConflict, "the capture of client %q is another one now; read it again", want.Client).At("If-Match")
	}
	if !exists {
		want.ID, want.CreatedAt = nuid.Next(), time.Now().UTC().Truncate(time.Millisecond)
		err = f.cfg.Audit.Do(ctx, action, func(ctx context.Context) error {
			if purge {
				if err := f.cfg.Store.DropStream(ctx, want.Client); err != nil {
					return err
				}
			}
			stored, err = f.cfg.Store.PutCapture(ctx, want)
			return err
		})
		return stored, true, err
	}
	fixed := func(field string, is, wanted any) error {
		return athena.Errorf(athena.CodeConflict, "client %q is captured with %s %v, and that cannot be changed to %v; disable the capture first", want.Client, field, is, wanted).At(field)
	}
	want.ID, want.CreatedAt, want.Revision = old.ID, old.CreatedAt, old.Revision
	switch {
	case old.Removing:
		return old, false, athena.Errorf(athena.CodeConflict, "the capture of client %q is being removed; enable it again when it is gone", want.Client)
	case purge:
		return old, false, athena.Errorf(athena.CodeConflict, "client %q is captured now, so its stream cannot be purged; disable it with purge first", want.Client).At("purge")
	case old.Slot != want.Slot:
		return old, false, fixed("slot", old.Slot, want.Slot)
	case old.Publication != want.Publication:
		return old, false, fixed("publication", old.Publication, want.Publication)
	case old.TakeOver != want.TakeOver:
		return old, false, fixed("take_over", old.TakeOver, want.TakeOver)
	case reflect.DeepEqual(old, want):
		return old, false, nil
	}
	if err := f.released(ctx, old, want); err != nil {
		return old, false, err
	}
	action.Details.Revision = old.Revision
	err = f.cfg.Audit.Do(ctx, action, func(ctx context.Context) error {
		stored, err = f.cfg.Store.PutCapture(ctx, want)
		return err
	})
	return stored, true, err
}

// disable has a worker drop what a capture holds at its source, and then the
// capture.
func (f *Family) disable(c *gin.Context) {
	if !allowed(c, settling, params.None(c)) {
		return
	}
	var body struct {
		Purge bool `json:"purge"`
	}
	raw, err := envelope.Body(c)
	if err == nil && len(bytes.TrimSpace(raw)) > 0 {
		err = athena.DecodeJSON(raw, &body, "")
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	client := f.client(c, settling)
	if client == nil {
		return
	}
	capture, ok := f.cfg.Store.Capture(client.Name)
	if !ok {
		envelope.Fail(c, notCaptured(client.Name))
		return
	}
	if !capture.Removing || body.Purge && !capture.Purge {
		capture.Removing, capture.Purge = true, capture.Purge || body.Purge
		err := f.cfg.Audit.Do(c.Request.Context(), ops.Change{
			Action: "cdc.disable", Client: client.Name, Target: capture.Slot, Details: ops.Details{Revision: capture.Revision},
		}, func(ctx context.Context) (err error) {
			capture, err = f.cfg.Store.PutCapture(ctx, capture)
			return err
		})
		if err != nil {
			envelope.Fail(c, err)
			return
		}
	}
	envelope.Accepted(c, "/cdc/"+client.Name, "a worker removes the capture", f.view(capture), envelope.Of(client))
}

// enabling is the body of check and enable.
type enabling struct {
	Tables      []driver.TableName      `json:"tables"`
	Slot        string                  `json:"slot"`
	Publication string                  `json:"publication"`
	TakeOver    bool                    `json:"take_over"`
	InsertsOnly bool                    `json:"inserts_only"`
	LocalOnly   bool                    `json:"local_only"`
	Confidence  athena.Duration         `json:"confidence"`
	Sweep       athena.Duration         `json:"sweep"`
	NoSweep     bool                    `json:"no_sweep"`
	Snapshot    changefeed.SnapshotMode `json:"snapshot"`
	OnError     changefeed.ErrorPolicy  `json:"on_error"`
	OnLoss      changefeed.LossPolicy   `json:"on_loss"`
	MaxAge      athena.Duration         `json:"max_age"`
	MaxBytes    int64                   `json:"max_bytes"`
	Pack        int                     `json:"pack"`
	Purge       bool                    `json:"purge"`
}

// Bounds of a capture.
const (
	captureTables = 10_000
	leastAge      = athena.Duration(time.Minute)
	mostAge       = athena.Duration(10 * 366 * 24 * time.Hour)
	leastBytes    = 1 << 20

	leastConfidence = athena.Duration(100 * time.Millisecond)
	mostConfidence  = athena.Duration(time.Hour)
	mostSweep       = athena.Duration(24 * time.Hour)
	mostName        = 63 // bytes of an engine's name
)

// decodeCapture reads what is wanted, with its defaults and its tables in order.
func decodeCapture(c *gin.Context) (changefeed.Capture, error) {
	var b enabling
	if err := envelope.Decode(c, &b); err != nil {
		return changefeed.Capture{}, err
	}
	slices.SortFunc(b.Tables, func(x, y driver.TableName) int {
		return cmp.Or(cmp.Compare(x.Schema, y.Schema), cmp.Compare(x.Table, y.Table))
	})
	b.Tables = slices.Compact(b.Tables)
	want := changefeed.Capture{
		Client: c.Param("client"), Tables: b.Tables, Slot: b.Slot, Publication: b.Publication,
		TakeOver: b.TakeOver, InsertsOnly: b.InsertsOnly, LocalOnly: b.LocalOnly,
		Confidence: b.Confidence, Sweep: b.Sweep, NoSweep: b.NoSweep, Snapshot: b.Snapshot, OnError: b.OnError, OnLoss: b.OnLoss,
		MaxAge: b.MaxAge, MaxBytes: b.MaxBytes, Pack: b.Pack, Purge: b.Purge,
	}.WithDefaults()
	refuse := func(field, format string, args ...any) (changefeed.Capture, error) {
		return want, athena.Errorf(athena.CodeInvalidRequest, format, args...).At(field)
	}
	switch {
	case len(b.Tables) == 0:
		return refuse("tables", "tables is missing; name at least one, such as public.orders")
	case len(b.Tables) > captureTables:
		return refuse("tables", "tables names %d tables; the most is %d", len(b.Tables), captureTables)
	case !engineName(want.Slot):
		return refuse("slot", "slot is %.80q; it must have 1 to %d bytes, and no control characters", want.Slot, mostName)
	case !engineName(want.Publication):
		return refuse("publication", "publication is %.80q; it must have 1 to %d bytes, and no control characters", want.Publication, mostName)
	case want.Snapshot != changefeed.SnapshotInitial && want.Snapshot != changefeed.SnapshotNone:
		return refuse("snapshot", "snapshot is %.40q; it must be initial or none", want.Snapshot)
	case want.Confidence != 0 && (want.Confidence < leastConfidence || want.Confidence > mostConfidence):
		return refuse("confidence", "confidence is %s; it must be between %s and %s, or 0 for the engine's default", want.Confidence, leastConfidence, mostConfidence)
	case want.Sweep != 0 && (want.Sweep < leastConfidence || want.Sweep > mostSweep):
		return refuse("sweep", "sweep is %s; it must be between %s and %s, or 0 for the engine's default; no_sweep is for none", want.Sweep, leastConfidence, mostSweep)
	case want.Sweep != 0 && want.NoSweep:
		return refuse("no_sweep", "no_sweep is set, and sweep is %s; give one of them", want.Sweep)
	case want.OnError != changefeed.DeadLetter && want.OnError != changefeed.Stop:
		return refuse("on_error", "on_error is %.40q; it must be dead_letter or stop", want.OnError)
	case want.OnLoss != changefeed.Fail && want.OnLoss != changefeed.Resnapshot:
		return refuse("on_loss", "on_loss is %.40q; it must be fail or resnapshot", want.OnLoss)
	case want.MaxAge < leastAge || want.MaxAge > mostAge:
		return refuse("max_age", "max_age is %s; it must be between %s and %s", want.MaxAge, leastAge, mostAge)
	case want.MaxBytes < leastBytes:
		return refuse("max_bytes", "max_bytes is %d; it must be at least %d", want.MaxBytes, leastBytes)
	case want.Pack < 1 || want.Pack > changefeed.MaxPack:
		return refuse("pack", "pack is %d; it must be between 1 and %d", want.Pack, changefeed.MaxPack)
	}
	for i, t := range b.Tables {
		if !engineName(t.Schema) || !engineName(t.Table) {
			return refuse(fmt.Sprintf("tables[%d]", i), "table %.100q has a part with more than %d bytes, or control characters", t.String(), mostName)
		}
	}
	return want, nil
}

func engineName(s string) bool { return s != "" && len(s) <= mostName && params.Printable(s) }
