package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) deferredCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "deferred",
		Aliases: []string{"jobs"},
		Short:   "Follow and steer deferred queries",
		Example: `  athena deferred list --client shop --state running
  athena deferred watch 0199f3a2-…
  athena deferred result 0199f3a2-… --format csv > result.csv`,
	}
	cmd.AddCommand(p.deferredList(), p.deferredGet(), p.deferredWatch(), p.deferredResult(),
		p.deferredAct("cancel", "Cancel a job; the final state is truthful", (*sdk.Job).Cancel),
		p.deferredAct("requeue", "Run a job that has ended again, as a new attempt", (*sdk.Job).Requeue),
		p.deferredDelete())
	return cmd
}

func (p *program) deferredList() *cobra.Command {
	var client, state string
	var pairs []string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List jobs, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := labels(pairs)
			if err != nil {
				return err
			}
			if limit < 1 {
				return usagef("--limit is %d; it must be positive", limit)
			}
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			list := []*sdk.JobInfo{}
			for info, err := range api.Jobs(cmd.Context(), sdk.Filter{Client: client, State: sdk.State(state), Labels: set, Page: min(limit, 100)}) {
				if err != nil {
					return err
				}
				if list = append(list, info); len(list) == limit {
					break
				}
			}
			return p.show(list, func(w io.Writer) {
				if len(list) == 0 {
					fmt.Fprintln(w, "no jobs")
					return
				}
				lines := make([][]string, len(list))
				for i, info := range list {
					lines[i] = []string{info.ID, info.Client, p.paint(w, stateColor(info.State), string(info.State)),
						ago(info.SubmittedAt), strconv.Itoa(len(info.Attempts)), clip(info.Query, 50)}
				}
				columns(w, []string{"ID", "CLIENT", p.paint(w, bold, "STATE"), "SUBMITTED", "ATTEMPTS", "QUERY"}, lines)
			})
		},
	}
	p.clientFlag(cmd, &client, "only this client's")
	cmd.Flags().StringVar(&state, "state", "", "only those in this state")
	cmd.Flags().StringArrayVar(&pairs, "label", nil, "only those with this NAME=VALUE; may be repeated")
	cmd.Flags().IntVar(&limit, "limit", 50, "most jobs to list")
	must(cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func stateNames() []string {
	return []string{"scheduled", "queued", "held", "running", "spooling", "retry_wait", "cancelling",
		"succeeded", "failed", "timed_out", "cancelled", "expired", "indeterminate"}
}

func (p *program) deferredGet() *cobra.Command {
	return &cobra.Command{
		Use:   "get ID",
		Short: "Show where a job stands",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			info, err := api.Job(args[0]).Get(cmd.Context())
			if err != nil {
				return err
			}
			return p.showJob(info)
		},
	}
}

func (p *program) showJob(info *sdk.JobInfo) error {
	return p.show(info, func(w io.Writer) {
		fact := func(name, value string) { fmt.Fprintf(w, "%-10s %s\n", name, value) }
		fact("job", info.ID)
		fact("client", info.Client+" ("+string(info.Engine)+")")
		fact("state", p.paint(w, stateColor(info.State), string(info.State)))
		fact("submitted", info.SubmittedAt.Local().Format(time.DateTime)+", "+ago(info.SubmittedAt))
		if info.State.Terminal() && !info.UpdatedAt.IsZero() {
			fact("ended", info.UpdatedAt.Local().Format(time.DateTime)+", "+ago(info.UpdatedAt))
		}
		if !info.NextAt.IsZero() {
			fact("next try", ago(info.NextAt))
		}
		if info.Error != nil {
			e := athena.Errorf(info.Error.Code, "%s", info.Error.Message)
			e.Details = info.Error.Details
			fact("error", e.Message+" ("+strings.Join(notes(e), ", ")+")")
		}
		if r := info.Result; r != nil {
			fact("result", fmt.Sprintf("%s, %s, %s", counted(r.Rows, "row"), counted(r.Bytes, "byte"), affected(r.RowsAffected)))
		}
		if info.ResultLost {
			fact("result", "lost: the statement was committed, and its rows are gone")
		}
		for _, a := range info.Attempts {
			took := "under way"
			if !a.Ended.IsZero() {
				took = a.Ended.Sub(a.Started).Round(time.Millisecond).String()
			}
			fact("attempt "+strconv.Itoa(a.N), strings.TrimSpace(fmt.Sprintf("%s on %s at %s, %s %s",
				dash(a.Outcome), a.Worker, a.Started.Local().Format(time.DateTime), took, a.Code)))
		}
		fact("query", clip(info.Query, 200))
	})
}

func (p *program) deferredWatch() *cobra.Command {
	return &cobra.Command{
		Use:   "watch ID",
		Short: "Follow a job until it has ended",
		Long: `Writes each state of a job as it comes, until it has ended. The exit code is that of
its end: 0 succeeded, 7 indeterminate, 6 any other. With --json each
state is a line of JSON.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			start := time.Now()
			var last *sdk.JobInfo
			for info, err := range api.Job(args[0]).Events(cmd.Context()) {
				if err != nil {
					return err
				}
				last = info
				if err := p.watched(info, start); err != nil {
					return err
				}
			}
			return jobEnd(last)
		},
	}
}

func (p *program) watched(info *sdk.JobInfo, start time.Time) error {
	if p.asJSON {
		return writeLine(p.stdout, info)
	}
	if !terminal(p.stdout) {
		return p.watchedLine(info)
	}
	_, err := fmt.Fprintf(p.stdout, "%7.2fs  %s\n", time.Since(start).Seconds(),
		p.paint(p.stdout, stateColor(info.State), describe(info)))
	return err
}

// watchedLine writes a line that is cut easily: time, state and worker. The time
// is the server's.
func (p *program) watchedLine(info *sdk.JobInfo) error {
	worker := "-"
	if n := len(info.Attempts); n > 0 {
		worker = dash(info.Attempts[n-1].Worker)
	}
	_, err := fmt.Fprintf(p.stdout, "%s %s %s\n", info.UpdatedAt.UTC().Format(time.RFC3339), info.State, worker)
	return err
}

func (p *program) deferredResult() *cobra.Command {
	var format string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "result ID",
		Short: "Write the rows of a job",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := p.rowFormat(format)
			if err != nil {
				return err
			}
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			job := api.Job(args[0])
			if wait > 0 {
				if err := p.await(cmd, job, wait); err != nil {
					return err
				}
			}
			rows, err := job.Result(cmd.Context())
			if err != nil {
				return ended(err)
			}
			return p.writeRows(rows, format)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "how rows are written: table, json, ndjson or csv (default table)")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait this long for the job to end")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// await waits for a job to succeed.
func (p *program) await(cmd *cobra.Command, job *sdk.Job, atMost time.Duration) error {
	info, err := job.WaitFor(cmd.Context(), atMost)
	if err != nil {
		return err
	}
	if !info.State.Terminal() {
		return outcome{exitPending, fmt.Errorf("time is up, and the job is %s", info.State)}
	}
	return jobEnd(info)
}

func (p *program) deferredAct(name, short string, act func(*sdk.Job, context.Context) (sdk.State, error)) *cobra.Command {
	return &cobra.Command{
		Use:   name + " ID",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			state, err := act(api.Job(args[0]), cmd.Context())
			if err != nil {
				return err
			}
			return p.say(map[string]any{"id": args[0], "state": state}, "%s", state)
		},
	}
}

func (p *program) deferredDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete ID...",
		Aliases: []string{"forget"},
		Short:   "Forget jobs that have ended, and their results",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			for _, id := range args {
				if err := api.Job(id).Forget(cmd.Context()); err != nil {
					return err
				}
			}
			return p.say(map[string]any{"forgotten": args}, "%s forgotten", counted(int64(len(args)), "job"))
		},
	}
}
