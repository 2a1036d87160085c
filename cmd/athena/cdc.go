package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) cdcCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cdc",
		Short: "Capture changes of tables, and follow them",
		Example: `  athena cdc check --client shop --tables public.orders,public.order_items
  athena cdc enable --client shop --tables public.orders,public.order_items
  athena cdc add --client shop --tables public.customers
  athena cdc status --client shop
  athena cdc tail --client shop --tables public.orders --where 'after.status == "paid"'
  athena cdc subscription create billing --client shop --tables public.orders
  athena cdc disable --client shop --purge`,
	}
	cmd.AddCommand(p.cdcCheck(), p.cdcEnable(), p.cdcAdd(), p.cdcRemove(), p.cdcDisable(), p.cdcStatus(), p.cdcTail(), p.cdcSnapshot(), p.cdcSubscription())
	return cmd
}

// changesOf is what the commands of one client's changes begin with.
func (p *program) changesOf(client string) (*sdk.CDC, func(), error) {
	name, err := p.clientName(client)
	if err != nil {
		return nil, nil, err
	}
	api, err := p.api()
	if err != nil {
		return nil, nil, err
	}
	return api.Client(name).CDC(), api.Close, nil
}

// tablesFlag adds --tables, which may be repeated and hold several with commas
// between.
func tablesFlag(cmd *cobra.Command, to *[]string, what string) {
	cmd.Flags().StringArrayVarP(to, "tables", "t", nil, what)
}

// tableNames takes the values of --tables apart.
func tableNames(values []string) (names []string) {
	for _, v := range values {
		names = append(names, changefeed.SplitTables(v)...)
	}
	return names
}

func (p *program) cdcCheck() *cobra.Command {
	var client string
	var tables []string
	var spec sdk.CaptureSpec
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what stands in the way of capturing, and the mend; changes nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			spec.Tables = tableNames(tables)
			found, err := c.Check(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if err := p.show(found, func(w io.Writer) { p.writeFindings(w, found) }); err != nil {
				return err
			}
			if !found.OK() {
				return outcome{exitConflict, errors.New("changes cannot be captured as things stand")}
			}
			return nil
		},
	}
	p.clientFlag(cmd, &client, "client to look at (ATHENA_CLIENT)")
	tablesFlag(cmd, &tables, "tables that are to be captured, as schema.table; may be repeated")
	engineFlags(cmd, &spec)
	return cmd
}

// widestFinding is how much of a finding stands in the table; all of it comes below.
const widestFinding = 60

func (p *program) writeFindings(w io.Writer, found driver.ChangeCheck) {
	tint := map[string]color{"ok": green, "warning": yellow, "error": red}
	var lines [][]string
	for _, f := range found.Findings {
		want := f.Want
		if f.Level == "ok" {
			want = ""
		}
		lines = append(lines, []string{p.paint(w, tint[f.Level], f.Level), f.Name, dash(f.Table), clip(dash(f.Found), widestFinding), clip(dash(want), widestFinding)})
	}
	columns(w, []string{p.paint(w, bold, "LEVEL"), "WHAT", "TABLE", "FOUND", "WANTED"}, lines)
	if len(found.Tables) > 0 {
		lines = nil
		for _, t := range found.Tables {
			lines = append(lines, []string{t.Table.String(), t.Identity, dash(strings.Join(t.Key, ", ")), strconv.FormatInt(t.Rows, 10), size(uint64(t.Bytes))})
		}
		fmt.Fprintln(w)
		columns(w, []string{"TABLE", "IDENTITY", "KEY", "ROWS, ABOUT", "SIZE"}, lines)
	}
	for _, f := range found.Findings {
		cut := clip(f.Found, widestFinding) != f.Found || clip(f.Want, widestFinding) != f.Want
		if f.Level == "ok" || f.Mend == "" && !cut {
			continue
		}
		fmt.Fprintf(w, "\n%s: %s\n", p.paint(w, tint[f.Level], f.Level), strings.TrimSpace(f.Name+" "+f.Table))
		if cut {
			fmt.Fprintf(w, "  found %s\n", f.Found)
			if f.Want != "" {
				fmt.Fprintf(w, "  wanted %s\n", f.Want)
			}
		}
		if f.Mend != "" {
			fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(f.Mend, "\n", "\n  "))
		}
	}
}

// tellFindings writes what stands in the way, if err says so.
func (p *program) tellFindings(err error) {
	raw, encodeErr := json.Marshal(athena.AsError(err).Details["findings"])
	var found driver.ChangeCheck
	if p.asJSON || encodeErr != nil || json.Unmarshal(raw, &found.Findings) != nil || len(found.Findings) == 0 {
		return
	}
	p.writeFindings(p.stderr, found)
	fmt.Fprintln(p.stderr)
}

// engineFlags adds the flags about what is made at the source.
func engineFlags(cmd *cobra.Command, spec *sdk.CaptureSpec) {
	f := cmd.Flags()
	f.StringVar(&spec.Slot, "slot", "", "name of the replication slot (default athena_CLIENT)")
	f.StringVar(&spec.Publication, "publication", "", "name of the publication (default athena_CLIENT)")
	f.BoolVar(&spec.TakeOver, "take-over", false, "use a slot and a publication that are there and that Athena did not make")
	f.BoolVar(&spec.InsertsOnly, "inserts-only", false, "of tables without a usable replica identity, capture inserts alone")
	f.BoolVar(&spec.LocalOnly, "local-only", false, "leave out changes that replication brought from elsewhere")
	f.DurationVar((*time.Duration)(&spec.Confidence), "confidence", 0, "how old a change must be before it is read, where the log is not in order (ScyllaDB; default 10s)")
	f.DurationVar((*time.Duration)(&spec.Sweep), "sweep", 0, "how far back late changes are looked for, where the log is not in order (ScyllaDB; default 10m)")
	f.BoolVar(&spec.NoSweep, "no-sweep", false, "do not look for late changes")
}

func (p *program) cdcEnable() *cobra.Command {
	var client, maxBytes string
	var tables []string
	var wait, maxAge time.Duration
	var spec sdk.CaptureSpec
	cmd := &cobra.Command{
		Use:   "enable",
		Short: "Have the changes of tables captured",
		Long: `Has a worker prepare the source (in PostgreSQL a publication and a replication slot),
read the rows that are there, and then store every committed change in the client's
stream.

Of a capture that is there it replaces all settings, the tables among them; athena cdc
add and athena cdc remove change its tables and leave the rest as it is. A table that a
running pipeline or a subscription follows by name does not fall out.

Waits until the changes stream, or the capture has failed. If neither is so by --wait
the exit code is 11 and the capture goes on; athena cdc status tells how far it is. A
slot waits for all transactions that run when it is made, however long they take.`,
		Example: `  athena cdc enable --client shop --tables public.orders,public.order_items
  athena cdc enable --client shop --tables 'public."Odd Name"' --snapshot none
  athena cdc enable --client shop --tables public.log --inserts-only --max-age 24h --max-bytes 4GiB`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if spec.Tables = tableNames(tables); len(spec.Tables) == 0 {
				return usagef("no table is named; give --tables, such as public.orders,public.order_items")
			}
			var most config.Bytes
			if maxBytes != "" {
				if err := most.UnmarshalText([]byte(maxBytes)); err != nil {
					return usagef("--max-bytes is %q: %v", maxBytes, err)
				}
			}
			spec.MaxAge, spec.MaxBytes = athena.Duration(maxAge), int64(most)
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			was, _ := c.Get(cmd.Context()) // there may be none
			got, err := c.Enable(cmd.Context(), spec)
			return p.enabled(cmd.Context(), c, was, got, err, wait)
		},
	}
	f := cmd.Flags()
	p.clientFlag(cmd, &client, "client whose changes are captured (ATHENA_CLIENT)")
	tablesFlag(cmd, &tables, "tables to capture, as schema.table; may be repeated")
	engineFlags(cmd, &spec)
	f.StringVar(&spec.Snapshot, "snapshot", "", "initial: the rows that are there come first; none (default initial)")
	f.StringVar(&spec.OnError, "on-error", "", "dead_letter or stop: what becomes of a change that cannot be encoded (default dead_letter)")
	f.StringVar(&spec.OnLoss, "on-loss", "", "fail or resnapshot: what is done if the source no longer has what comes next (default fail)")
	f.DurationVar(&maxAge, "max-age", 0, "how long changes are kept (default 168h)")
	f.StringVar(&maxBytes, "max-bytes", "", "how many bytes of changes are kept; a full stream stops the capture (default 16GiB)")
	f.IntVar(&spec.Pack, "pack", 0, "most changes in one message of the stream, 1 to 512 (default 512)")
	f.BoolVar(&spec.Purge, "purge", false, "drop what is stored of an earlier capture first")
	f.DurationVar(&wait, "wait", time.Minute, "wait this long for the changes to stream; 0 does not wait")
	for name, values := range map[string][]string{"snapshot": {"initial", "none"}, "on-error": {"dead_letter", "stop"}, "on-loss": {"fail", "resnapshot"}} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
	}
	return cmd
}

// enabled tells what became of the tables of a capture, and of the capture.
func (p *program) enabled(ctx context.Context, c *sdk.CDC, was, got *sdk.Captured, err error, wait time.Duration) error {
	if err != nil {
		p.tellFindings(err)
		return err
	}
	if was != nil && was.Capture != nil && got.Capture != nil && !p.asJSON {
		for _, side := range []struct {
			text     string
			of, than []string
		}{{"captured from now on", got.Capture.Tables, was.Capture.Tables}, {"no longer captured", was.Capture.Tables, got.Capture.Tables}} {
			if more := without(side.of, side.than); len(more) > 0 {
				fmt.Fprintf(p.stderr, "%s: %s\n", side.text, strings.Join(more, ", "))
			}
		}
	}
	if wait > 0 {
		if got, err = p.awaitCapture(ctx, c, got, wait); got == nil {
			return err
		}
	}
	return errors.Join(p.show(got, func(w io.Writer) { p.writeCaptured(w, got) }), err)
}

// without returns what of list is not in other.
func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(other, s) })
}

func (p *program) cdcAdd() *cobra.Command {
	var snapshot string
	cmd := p.cdcTables("add", "Have more tables captured", `Adds tables to those that are captured; all other settings stay as they are. Their rows
come first, unless the capture is one without snapshot. Those of a table that was captured
before stand behind a truncate, so that readers forget what was deleted meanwhile.`,
		func(spec *sdk.CaptureSpec, names []string) error {
			spec.Tables = append(spec.Tables, without(names, spec.Tables)...)
			spec.Snapshot = cmp.Or(snapshot, spec.Snapshot)
			return nil
		})
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "initial or none: whether the capture reads rows (default as it is); with initial, rows are read that it has not read so far")
	must(cmd.RegisterFlagCompletionFunc("snapshot", cobra.FixedCompletions([]string{"initial", "none"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (p *program) cdcRemove() *cobra.Command {
	return p.cdcTables("remove", "Have tables no longer captured", `Takes tables out of those that are captured; all other settings stay as they are. A table
that a running pipeline or a subscription follows by name is not taken out. What is stored
of its changes stays until it ages out.`,
		func(spec *sdk.CaptureSpec, names []string) error {
			if unknown := without(names, spec.Tables); len(unknown) > 0 {
				return outcome{exitNotFound, fmt.Errorf("not captured: %s", strings.Join(unknown, ", "))}
			}
			if spec.Tables = without(spec.Tables, names); len(spec.Tables) == 0 {
				return outcome{exitConflict, errors.New("no table would be left; athena cdc disable ends the capture")}
			}
			return nil
		})
}

// cdcTables changes the tables of a capture that is there, at the revision that it
// was read at.
func (p *program) cdcTables(verb, short, long string, change func(spec *sdk.CaptureSpec, names []string) error) *cobra.Command {
	var client string
	var tables []string
	var wait time.Duration
	cmd := &cobra.Command{
		Use: verb, Short: short, Long: long,
		Example: "  athena cdc " + verb + " --client shop --tables public.order_items",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := tableNames(tables)
			if len(names) == 0 {
				return usagef("no table is named; give --tables, such as public.order_items")
			}
			for i, name := range names {
				t, err := driver.ParseTableName(name)
				if err != nil {
					return err
				}
				names[i] = t.String() // as captures have it
			}
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			was, err := c.Get(cmd.Context())
			if err != nil {
				return err
			}
			if was.Capture == nil {
				return outcome{exitNotFound, errors.New("there is no capture; athena cdc enable begins one")}
			}
			spec := was.Capture.CaptureSpec
			spec.Tables = slices.Clone(spec.Tables)
			if err := change(&spec, names); err != nil {
				return err
			}
			got, err := c.Change(cmd.Context(), spec, was.Revision)
			return p.enabled(cmd.Context(), c, was, got, err, wait)
		},
	}
	p.clientFlag(cmd, &client, "client whose changes are captured (ATHENA_CLIENT)")
	tablesFlag(cmd, &tables, "the tables, as schema.table; may be repeated")
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "wait this long for the changes to stream; 0 does not wait")
	return cmd
}

// lookEvery is how often a capture that is waited for is looked at.
const lookEvery = 300 * time.Millisecond

// awaitCapture returns the capture once it streams, has failed, or time is up,
// with the error that fits the last two. It tells of progress on stderr.
func (p *program) awaitCapture(ctx context.Context, c *sdk.CDC, want *sdk.Captured, atMost time.Duration) (*sdk.Captured, error) {
	told, deadline := "", time.Now().Add(atMost)
	for {
		got, err := c.Get(ctx)
		if err != nil {
			return nil, err
		}
		st := got.Status
		switch {
		case got.Capture == nil || want.Capture == nil || got.Capture.ID != want.Capture.ID:
			return nil, outcome{exitConflict, errors.New("somebody has disabled the capture meanwhile")}
		case st != nil && st.State == sdk.CaptureStreaming:
			return got, nil
		case st != nil && (st.State == sdk.CaptureFailed || st.State == sdk.CaptureHeld):
			return got, captureEnd(st)
		case !time.Now().Before(deadline):
			return got, outcome{exitPending, errors.New("time is up, and the capture goes on; see athena cdc status")}
		}
		if now := progress(st); now != told && !p.asJSON {
			told = now
			fmt.Fprintln(p.stderr, p.paint(p.stderr, dim, now))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(min(lookEvery, time.Until(deadline)+time.Millisecond)):
		}
	}
}

// progress says in a line what a capture is at.
func progress(st *sdk.CaptureStatus) string {
	if st == nil || st.State == sdk.CaptureWaiting {
		return "waiting for a worker"
	}
	text := string(st.State)
	if st.Progress != "" {
		text += ": " + st.Progress
	}
	if st.Cause != nil {
		text += ": " + st.Cause.Message
	}
	for _, s := range st.Snapshots {
		if s.State == "running" {
			rows, total := s.Rows()
			text += fmt.Sprintf(", %d of about %d rows", rows, total)
		}
	}
	return text
}

// captureEnd is the error that fits how a capture fares; nil if it does well.
func captureEnd(st *sdk.CaptureStatus) error {
	why := "the capture is " + string(st.State)
	if st.Cause != nil {
		why += ": " + st.Cause.Message + " (" + st.Cause.Code + ")"
	}
	switch st.State {
	case sdk.CaptureFailed:
		return outcome{exitFailure, errors.New(why)}
	case sdk.CaptureHeld:
		return outcome{exitNotRunnable, errors.New(why)}
	case sdk.CaptureDegraded, sdk.CaptureWaiting:
		return outcome{exitUnavailable, errors.New(why)}
	}
	return nil
}

func (p *program) cdcDisable() *cobra.Command {
	var client string
	var purge bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "disable",
		Short: "End a capture, and remove what it made at the source",
		Long: `Has a worker drop the replication slot and the publication, so that the source keeps no
log for them any more. The changes that are stored can be read until they age out; with
--purge they are dropped as well, and large values with them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			if err := c.Disable(cmd.Context(), purge); err != nil {
				return err
			}
			if err := p.awaitRemoval(cmd.Context(), c, wait); err != nil {
				return err
			}
			return p.say(map[string]any{"disabled": true, "purged": purge}, "%s", map[bool]string{true: "disabled", false: "a worker is removing it"}[wait > 0])
		},
	}
	p.clientFlag(cmd, &client, "client whose changes are no longer captured (ATHENA_CLIENT)")
	cmd.Flags().BoolVar(&purge, "purge", false, "drop the changes that are stored")
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "wait this long for slot and publication to be removed; 0 does not wait")
	return cmd
}

func (p *program) awaitRemoval(ctx context.Context, c *sdk.CDC, atMost time.Duration) error {
	for deadline := time.Now().Add(atMost); atMost > 0; {
		got, err := c.Get(ctx)
		switch {
		case athena.CodeOf(err) == athena.CodeNotFound, err == nil && got.Capture == nil:
			return nil
		case err != nil:
			return err
		case got.Status != nil && got.Status.State == sdk.CaptureFailed:
			return captureEnd(got.Status)
		case !time.Now().Before(deadline):
			return outcome{exitPending, errors.New("time is up, and slot and publication are not removed yet; see athena cdc status")}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
	return nil
}

func (p *program) cdcStatus() *cobra.Command {
	var client string
	var check bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how captures fare: of one client, or of all",
		Long: `Without --client all captures are listed. With --check the exit code tells how the
captures fare that were shown: 0 well, 1 one has failed and needs a hand, 9 one is held
since its client is frozen or not granted cdc, 5 one does not get on now and will by
itself.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			var list []sdk.Captured
			if client != "" {
				got, err := api.Client(client).CDC().Get(cmd.Context())
				if err != nil {
					return err
				}
				list = []sdk.Captured{*got}
				err = p.show(got, func(w io.Writer) { p.writeCaptured(w, got) })
				if err != nil {
					return err
				}
			} else {
				if list, err = api.Captures(cmd.Context()); err != nil {
					return err
				}
				if err := p.show(list, func(w io.Writer) { p.writeCaptures(w, list) }); err != nil {
					return err
				}
			}
			if check {
				return worst(list)
			}
			return nil
		},
	}
	p.clientFlag(cmd, &client, "only this client's, with all that is known")
	cmd.Flags().BoolVar(&check, "check", false, "have the exit code tell how they fare")
	return cmd
}

// worst is the error of the capture that needs help most: a failed one before a
// held one before one that will get on by itself.
func worst(list []sdk.Captured) (err error) {
	rank := map[exit]int{exitUnavailable: 1, exitNotRunnable: 2, exitFailure: 3}
	for _, c := range list {
		if c.Status == nil { // only the stream of an earlier one
			continue
		}
		end := captureEnd(c.Status)
		if end == nil || rank[exitOf(end)] <= rank[exitOf(err)] {
			continue
		}
		err = outcome{exitOf(end), fmt.Errorf("%s: %w", c.Status.Client, end)}
	}
	return err
}

func captureColor(s sdk.CaptureState) color {
	switch s {
	case sdk.CaptureStreaming:
		return green
	case sdk.CaptureFailed:
		return red
	case sdk.CaptureDegraded, sdk.CaptureHeld, sdk.CaptureRemoving:
		return yellow
	case sdk.CaptureSnapshot, sdk.CaptureStarting:
		return blue
	}
	return dim
}

func (p *program) writeCaptures(w io.Writer, list []sdk.Captured) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no captures")
		return
	}
	var lines [][]string
	for _, c := range list {
		st := c.Status
		if c.Capture == nil || st == nil {
			continue
		}
		note := st.Progress
		if st.Cause != nil {
			note = st.Cause.Code + ": " + st.Cause.Message
		}
		lines = append(lines, []string{c.Capture.Client, p.paint(w, captureColor(st.State), string(st.State)), strconv.Itoa(len(c.Capture.Tables)),
			lag(st), fmt.Sprintf("%.0f/s", st.ChangesPerSecond), dash(string(st.Position)), clip(dash(note), 60)})
	}
	columns(w, []string{"CLIENT", p.paint(w, bold, "STATE"), "TABLES", "LAG", "CHANGES", "POSITION", "NOTE"}, lines)
}

func lag(st *sdk.CaptureStatus) string {
	if st.Streams != nil { // whose log is not told in bytes
		return time.Duration(st.LagSeconds * float64(time.Second)).Round(time.Millisecond).String()
	}
	return fmt.Sprintf("%s, %s", size(uint64(max(st.LagBytes, 0))), (time.Duration(st.LagSeconds * float64(time.Second))).Round(time.Millisecond))
}

// writeCaptured writes all that is known of one capture.
func (p *program) writeCaptured(w io.Writer, c *sdk.Captured) {
	fact := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	if c.Capture != nil && c.Status != nil {
		p.writeCapture(w, fact, c.Capture, c.Status)
	} else {
		fact("state", "%s", p.paint(w, dim, "not captured; what an earlier capture has stored can be read"))
	}
	if s := c.Stream; s != nil {
		fact("stream", "%s, %s of at most %s, kept for %s", counted(int64(s.Messages), "message"), size(s.Bytes), size(uint64(s.MaxBytes)), s.MaxAge)
		if s.First != "" {
			fact("from", "%s, stored %s", s.First, ago(s.Oldest))
			fact("to", "%s", s.Last)
		}
	}
	fact("read by", "%s", counted(int64(c.Subscriptions), "subscription"))
	if c.Status != nil {
		for _, s := range c.Status.Snapshots {
			p.writeSnapshot(w, s)
		}
	}
}

func (p *program) writeCapture(w io.Writer, fact func(string, string, ...any), c *sdk.Capture, st *sdk.CaptureStatus) {
	fact("client", "%s", c.Client)
	fact("state", "%s", p.paint(w, captureColor(st.State), string(st.State)))
	if st.Progress != "" {
		fact("progress", "%s", st.Progress)
	}
	if st.Cause != nil {
		fact("cause", "%s (%s, since %s)", st.Cause.Message, st.Cause.Code, ago(st.Cause.Since))
		fact("mend", "%s", st.Cause.Runbook)
	}
	fact("tables", "%s", strings.Join(c.Tables, ", "))
	if st.Position != "" {
		fact("position", "%s", st.Position)
	}
	if st.Worker != "" {
		fact("lag", "%s", lag(st))
		fact("captured", "%s (%.0f/s), %s (%s/s) since the worker took it", counted(int64(st.Changes), "change"), st.ChangesPerSecond,
			size(st.Bytes), size(uint64(st.BytesPerSecond)))
		if st.Rejected > 0 {
			fact("rejected", "%s; see athena dead list", counted(int64(st.Rejected), "change"))
		}
		fact("worker", "%s, heard %s, %s", st.Worker, ago(st.At), counted(int64(st.Restarts), "restart"))
	}
	if s := st.Streams; s != nil {
		p.writeStreams(w, fact, s, st.Slot)
		return
	}
	if s := st.Slot; s != nil && s.WALStatus == "" && s.Invalidated == "" {
		return // an engine without slots
	}
	if s := st.Slot; s != nil {
		fact("slot", "%s: %s, active %t, %s of log kept", s.Slot, cmp.Or(s.Invalidated, s.WALStatus), s.Active, size(uint64(max(s.Retained, 0))))
	} else {
		fact("slot", "%s", c.Slot)
	}
	fact("publication", "%s", c.Publication)
}

// writeStreams tells of a log of many streams.
func (p *program) writeStreams(w io.Writer, fact func(string, string, ...any), s *driver.StreamLag, log *driver.ChangeHealth) {
	fact("log", "%s, complete up to %s, read when %s old", counted(int64(s.Streams), "stream"), ago(s.Complete), s.Confidence)
	switch {
	case s.Sweep <= 0:
		fact("late", "not looked for")
	default:
		fact("late", "%s; looked for %s back", counted(int64(s.Late), "change"), s.Sweep)
	}
	if s.Waits != "" {
		fact("waits", "%s", s.Waits)
	}
	if log != nil && !log.Expires.IsZero() {
		fact("expires", "what is not read yet leaves the log %s", log.Expires.UTC().Format(time.RFC3339))
	}
	if len(s.Slowest) > 0 {
		one := s.Slowest[0]
		fact("slowest", "%s, stream %s, complete up to %s", one.Table, one.Stream, ago(one.Complete))
	}
}
