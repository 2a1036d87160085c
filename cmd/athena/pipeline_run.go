package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) pipelineRun() *cobra.Command {
	var c chosenPipeline
	var key string
	var detach bool
	cmd := &cobra.Command{
		Use:   "run [NAME]",
		Short: "Run a batch, stored or of a file, and follow it",
		Long: `Has a worker run a batch, and shows how far it is until it is over: on a terminal as a
bar that is drawn in place, else as lines of JSON.

The first interrupt leaves the run to itself, with exit code 11, and says how it is
followed and cancelled; a second one within three seconds cancels it. A connection that
is cut is made again.

The exit code is 0 if the run succeeded and 6 if it failed or was cancelled. One that
cannot be run is refused before anything is read, with the code of the stage that is to
blame, and its plan is shown. Of a file with dry_run nothing but the plan of level sample
is made.`,
		Example: `  athena pipeline run -f orders.yaml
  athena pipeline run orders-of-region --param region=eu
  athena pipeline run orders --detach`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			def, name, values, err := p.choose(&c, args)
			if err != nil {
				return err
			}
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			if def != nil && def.DryRun {
				def.DryRun = false
				return p.plan(cmd.Context(), pl, sdk.PlanQuestion{Definition: spec.Encode(def), Level: sdk.PlanSample})
			}
			o := sdk.RunOptions{Params: values, IdempotencyKey: cmp.Or(key, uuid.NewString())} // so that a cut connection makes no second run
			var info *sdk.RunInfo
			if def != nil {
				def.Schedule = "" // that of a file which is stored, too
				o.Params = nil
				info, err = pl.Run(cmd.Context(), spec.Encode(def), o)
			} else {
				info, err = pl.RunStored(cmd.Context(), name, o)
			}
			if err != nil {
				p.tellPlan(err)
				return err
			}
			return p.launched(cmd.Context(), api, info, detach)
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&key, "idempotency-key", "", "make asking again with this key find the same run")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not follow the run")
	return cmd
}

// launched follows a run that was made now, or says where it is found.
func (p *program) launched(ctx context.Context, api *sdk.API, info *sdk.RunInfo, detach bool) error {
	if detach {
		return p.say(info, "run %s is %s; follow it with: athena pipeline watch %s", info.ID, info.State, info.ID)
	}
	return p.follow(ctx, api.Run(info.ID), info)
}

func (p *program) pipelineStart() *cobra.Command {
	var pairs []string
	var reset, watch bool
	cmd := &cobra.Command{
		Use:   "start NAME",
		Short: "Have a pipeline follow changes, from where it was",
		Long: `Starts a pipeline whose source is cdc. It goes on where it was, or begins with the rows
that are there. With --reset it forgets how far it was, and begins anew.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := (&chosenPipeline{pairs: pairs}).params()
			if err != nil {
				return err
			}
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			info, err := pl.Start(cmd.Context(), args[0], sdk.RunOptions{Params: values, Reset: reset, IdempotencyKey: uuid.NewString()})
			if err != nil {
				p.tellPlan(err)
				return err
			}
			return p.launched(cmd.Context(), api, info, !watch)
		},
	}
	cmd.Flags().BoolVar(&reset, "reset", false, "forget how far it was")
	cmd.Flags().BoolVar(&watch, "watch", false, "follow the run")
	cmd.Flags().StringArrayVar(&pairs, "param", nil, "value of a template's parameter, as NAME=VALUE; may be repeated")
	return cmd
}

func (p *program) pipelineWatch() *cobra.Command {
	return &cobra.Command{
		Use:               "watch RUN|NAME",
		Short:             "Follow a run, or the newest run of a pipeline",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			run, err := newest(cmd.Context(), api, pl, args[0])
			if err != nil {
				return err
			}
			info, err := run.Get(cmd.Context())
			if err != nil {
				return err
			}
			return p.follow(cmd.Context(), run, info)
		},
	}
}

// isRun reports whether an argument names a run, and not a pipeline.
func isRun(arg string) bool {
	id, err := uuid.Parse(arg)
	return err == nil && id.String() == arg
}

// newest is the run that an argument means: one by its id, or the newest one of a
// pipeline.
func newest(ctx context.Context, api *sdk.API, pl *sdk.Pipelines, arg string) (*sdk.Run, error) {
	if isRun(arg) {
		return api.Run(arg), nil
	}
	for info, err := range pl.Runs(ctx, arg, sdk.RunFilter{Page: 1}) {
		if err != nil {
			return nil, err
		}
		return api.Run(info.ID), nil
	}
	return nil, athena.Errorf(athena.CodeNotFound, "pipeline %q has no runs", arg)
}

func (p *program) pipelineCancel() *cobra.Command {
	return &cobra.Command{
		Use:               "cancel RUN|NAME",
		Short:             "Cancel a run, or the newest run of a pipeline",
		Long:              "Has a run end, and what has not taken effect undone.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			run, err := newest(cmd.Context(), api, pl, args[0])
			if err != nil {
				return err
			}
			info, err := run.Cancel(cmd.Context())
			if err != nil {
				return err
			}
			if info.State.Over() {
				return p.say(info, "run %s is %s", info.ID, info.State)
			}
			return p.say(info, "run %s is %s, and is being cancelled", info.ID, info.State)
		},
	}
}

// pipelineAct is a command that wants something of a pipeline, or of a run, if
// that is possible.
func (p *program) pipelineAct(verb, short string, pipeline func(*sdk.Pipelines, context.Context, string) error, run func(*sdk.Run, context.Context) (*sdk.RunInfo, error)) *cobra.Command {
	use := verb + " NAME"
	if run != nil {
		use += "|RUN"
	}
	return &cobra.Command{
		Use:               use,
		Short:             short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			if run != nil && isRun(args[0]) {
				info, err := run(api.Run(args[0]), cmd.Context())
				if err != nil {
					return err
				}
				return p.say(info, "%s: asked for; run %s is %s", verb, info.ID, info.State)
			}
			if err := pipeline(pl, cmd.Context(), args[0]); err != nil {
				return err
			}
			info, err := pl.Get(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			return p.show(info, func(w io.Writer) {
				fmt.Fprintf(w, "%s: asked for; ", verb)
				switch {
				case info.Schedule != "":
					fmt.Fprintf(w, "the next run of %s: %s\n", info.Name, nextRun(*info))
				case info.LastRun != nil:
					fmt.Fprintf(w, "%s is %s\n", info.Name, info.LastRun.State)
				default:
					fmt.Fprintln(w, info.Name)
				}
			})
		},
	}
}

func (p *program) pipelineRuns() *cobra.Command {
	var state string
	var limit int
	cmd := &cobra.Command{
		Use:               "runs [NAME|RUN]",
		Short:             "List runs, of one pipeline or all, newest first, or show one with its steps",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return usagef("--limit is %d; it must be positive", limit)
			}
			if state != "" && !slices.Contains(sdk.RunStates(), sdk.RunState(state)) {
				return usagef("--state is %q; it must be one of %s", state, strings.Trim(fmt.Sprint(sdk.RunStates()), "[]"))
			}
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			filter := sdk.RunFilter{State: sdk.RunState(state), Page: min(limit, 100)}
			found := pl.AllRuns(cmd.Context(), filter)
			switch {
			case len(args) == 0:
			case isRun(args[0]):
				info, err := api.Run(args[0]).Get(cmd.Context())
				if err != nil {
					return err
				}
				return p.show(info, func(w io.Writer) { p.writeRun(w, info) })
			default:
				found = pl.Runs(cmd.Context(), args[0], filter)
			}
			list := []*sdk.RunInfo{}
			for info, err := range found {
				if err != nil {
					return err
				}
				if list = append(list, info); len(list) == limit {
					break
				}
			}
			return p.show(list, func(w io.Writer) { p.writeRuns(w, list, len(args) == 0) })
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only those in this state")
	cmd.Flags().IntVar(&limit, "limit", 20, "most runs to list")
	names := make([]string, 0, len(sdk.RunStates()))
	for _, s := range sdk.RunStates() {
		names = append(names, string(s))
	}
	must(cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// called is what a run is called by: its pipeline, else the name that its definition
// has, which may be empty.
func called(r *sdk.RunInfo) string { return cmp.Or(r.Pipeline, r.Name) }

// writeRuns lists runs; of several pipelines with what each is called.
func (p *program) writeRuns(w io.Writer, list []*sdk.RunInfo, several bool) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no runs")
		return
	}
	most := clipped(w, 50)
	lines := make([][]string, len(list))
	for i, r := range list {
		why := "-"
		if r.Cause != nil {
			why = clip(placed(r.Cause.Stage, r.Cause.Message), most)
		}
		lines[i] = []string{r.ID, string(r.Kind), p.paint(w, runColor(r.State), string(r.State)), r.Trigger, ago(r.CreatedAt), took(r),
			grouped(r.Counts.Written), grouped(r.Counts.Rejected), why}
		if several {
			lines[i] = slices.Insert(lines[i], 1, dash(called(r)))
		}
	}
	heading := []string{"RUN", "KIND", p.paint(w, bold, "STATE"), "BY", "MADE", "TOOK", "ROWS", "DEAD", "WHY"}
	if several {
		heading = slices.Insert(heading, 1, "NAME")
	}
	columns(w, heading, lines)
}

// placed puts where something is before what is said of it, unless that is said
// already.
func placed(where, text string) string {
	if where == "" || strings.HasPrefix(text, where) {
		return text
	}
	return where + ": " + text
}

// took is how long a run took, or has taken so far.
func took(r *sdk.RunInfo) string {
	switch {
	case r.StartedAt.IsZero():
		return "-"
	case r.EndedAt.IsZero():
		return lasted(time.Since(r.StartedAt))
	}
	return lasted(r.EndedAt.Sub(r.StartedAt))
}

func (p *program) writeRun(w io.Writer, r *sdk.RunInfo) {
	fact := func(name, value string) { fmt.Fprintf(w, "%-10s %s\n", name, value) }
	fact("run", r.ID+" ("+string(r.Kind)+")")
	if r.Pipeline != "" {
		fact("pipeline", fmt.Sprintf("%s at generation %d", r.Pipeline, r.Generation))
	}
	if r.Name != "" {
		fact("name", r.Name+", run at once")
	}
	fact("clients", dash(r.Source)+" to "+r.Sink)
	fact("state", p.paint(w, runColor(r.State), string(r.State)))
	if r.Cause != nil {
		fact("why", placed(r.Cause.Stage, r.Cause.Message)+" ("+string(r.Cause.Code)+")")
	}
	fact("made", r.CreatedAt.Local().Format(time.DateTime)+" by "+r.Trigger+", key "+r.Key)
	fact("took", took(r))
	fact("rows", countsLine(r.Counts))
	if k := r.Work; k != nil {
		fact("tasks", fmt.Sprintf("%d done, %d running, %d queued", k.Done, k.Running, k.Queued))
		for _, f := range k.Faults {
			if f.Cause != nil {
				fact("task "+strconv.Itoa(f.Task), fmt.Sprintf("attempt %d: %s (%s)", f.Attempt, f.Cause.Message, f.Cause.Code))
			}
		}
	}
	if r.Progress != nil && !r.State.Over() {
		fact("progress", progressLine(r.Progress, time.Now()))
	}
	for _, s := range r.Steps {
		fact(s.At.Local().Format(time.TimeOnly), s.Text)
	}
}

func countsLine(c sdk.RunCounts) string {
	parts := []string{grouped(c.Read) + " read", grouped(c.Written) + " written"}
	for _, one := range []struct {
		n    int64
		what string
	}{{c.Rejected, "that could not go on"}, {c.Discarded, "discarded"}, {c.Changed, "changed"}} {
		if one.n > 0 {
			parts = append(parts, grouped(one.n)+" "+one.what)
		}
	}
	if c.Objects > 0 {
		parts = append(parts, counted(c.Objects, "object"))
	}
	return strings.Join(parts, ", ")
}

// runEnd is the error that fits how a run ended; nil if that is well.
func runEnd(r *sdk.RunInfo) error {
	err := r.Err()
	if err == nil {
		return nil
	}
	e := athena.AsError(err)
	text := "the run was cancelled"
	if r.State == sdk.RunFailed {
		text = "the run failed: " + e.Message
		if r.Cause != nil && r.Cause.Stage != "" && !strings.HasPrefix(e.Message, r.Cause.Stage) {
			text = "the run failed in " + r.Cause.Stage + ": " + e.Message
		}
	}
	end := athena.Errorf(e.Code, "%s", text).With("run", r.ID)
	return outcome{exitJobFailed, end}
}

// A viewer shows a run that is followed.
type viewer interface {
	tell(e sdk.RunEvent) error
	// tick is called now and then, and done when no more comes.
	tick()
	done()
}

// follow shows a run until it is over, and returns the error that fits its end. An
// interrupt leaves it to itself, and a second one cancels it.
func (p *program) follow(ctx context.Context, run *sdk.Run, info *sdk.RunInfo) error {
	again := make(chan os.Signal, 2)
	signal.Notify(again, os.Interrupt)
	defer signal.Stop(again)
	v := p.viewer(info)
	defer v.done()
	last, err := p.events(ctx, run, v)
	switch {
	case ctx.Err() != nil && !last.State.Over():
		v.done()
		return p.left(run, again)
	case err != nil:
		return err
	}
	v.done()
	if !p.asJSON && terminal(p.stdout) {
		p.writeEnd(p.stdout, last)
	}
	return runEnd(last)
}

// events shows what is told of a run, and returns it as it was told last.
func (p *program) events(ctx context.Context, run *sdk.Run, v viewer) (*sdk.RunInfo, error) {
	type item struct {
		e   sdk.RunEvent
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	items := make(chan item)
	go func() {
		defer close(items)
		for e, err := range run.Events(ctx) {
			select {
			case items <- item{e, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	last := &sdk.RunInfo{}
	for {
		select {
		case i, ok := <-items:
			if !ok || i.err != nil {
				return last, i.err
			}
			if i.e.Run != nil {
				last = i.e.Run
			}
			if err := v.tell(i.e); err != nil {
				return last, err
			}
		case <-tick.C:
			v.tick()
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}

// secondWithin is how long a second interrupt is waited for.
const secondWithin = 3 * time.Second

// left says that a run goes on, and cancels it if there is a second interrupt. The
// first one may still stand in again.
func (p *program) left(run *sdk.Run, again <-chan os.Signal) error {
	people := terminal(p.stderr)
	text := fmt.Sprintf("run %s goes on; follow it with: athena pipeline watch %s; cancel it with: athena pipeline cancel %s", run.ID, run.ID, run.ID)
	if !people {
		return outcome{exitPending, errors.New(text)}
	}
	select { // the one that led here comes on both ways, in either order
	case <-again:
	case <-time.After(100 * time.Millisecond):
	}
	fmt.Fprintf(p.stderr, "\n%s\n", p.paint(p.stderr, yellow, "interrupt once more to cancel the run"))
	select {
	case <-again:
	case <-time.After(secondWithin):
		return outcome{exitPending, errors.New(text)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := run.Cancel(ctx); err != nil {
		return err
	}
	return outcome{exitInterrupted, fmt.Errorf("run %s is being cancelled", run.ID)}
}

func (p *program) writeEnd(w io.Writer, r *sdk.RunInfo) {
	fmt.Fprintf(w, "%s in %s: %s\n", p.paint(w, runColor(r.State), string(r.State)), took(r), countsLine(r.Counts))
	if r.Counts.Rejected > 0 {
		fmt.Fprintln(w, "rows that could not go on: athena pipeline dead list "+cmp.Or(r.Pipeline, r.ID))
	}
}
