package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/record"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) pipelinePlan() *cobra.Command {
	var c chosenPipeline
	var level string
	cmd := &cobra.Command{
		Use:   "plan [NAME]",
		Short: "Say of each stage whether it can run, before anything is read or written",
		Long: `Shows the verdict of each stage with what it needs, the columns that would be written,
how the work is divided, and what is promised of delivery. Level static dials nobody,
connect asks the databases and buckets, and sample takes some rows through the transforms
as well. Nothing is ever written.

If a stage is refused, the exit code is that of the code which it is refused with: see
athena help exit-codes.`,
		Example: `  athena pipeline plan -f orders.yaml
  athena pipeline plan orders --level sample
  athena pipeline plan orders-of-region --param region=eu --level connect`,
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
			q := sdk.PlanQuestion{Name: name, Params: values, Level: level}
			if def != nil {
				q = sdk.PlanQuestion{Definition: spec.Encode(def), Level: level}
			}
			return p.plan(cmd.Context(), pl, q)
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&level, "level", sdk.PlanStatic, "how far it looks: static, connect or sample")
	must(cmd.RegisterFlagCompletionFunc("level", cobra.FixedCompletions([]string{sdk.PlanStatic, sdk.PlanConnect, sdk.PlanSample}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// plan has a definition judged, and shows the verdict.
func (p *program) plan(ctx context.Context, pl *sdk.Pipelines, q sdk.PlanQuestion) error {
	plan, err := pl.Plan(ctx, q)
	if err != nil {
		return err
	}
	if err := p.show(plan, func(w io.Writer) { p.writePlan(w, plan) }); err != nil {
		return err
	}
	return plan.Err()
}

// tellPlan writes the plan of a definition that was refused, if err has it.
func (p *program) tellPlan(err error) {
	plan := sdk.PlanOf(err)
	if plan == nil || p.asJSON {
		return
	}
	p.writePlan(p.stderr, plan)
	fmt.Fprintln(p.stderr)
}

func verdictColor(verdict string) color {
	switch verdict {
	case sdk.PlanOK:
		return green
	case sdk.PlanRefused:
		return red
	}
	return yellow
}

func (p *program) writePlan(w io.Writer, plan *sdk.PipelinePlan) {
	most := clipped(w, 72)
	lines := make([][]string, len(plan.Stages))
	for i, s := range plan.Stages {
		client := dash(s.Client)
		if s.Engine != "" {
			client += " (" + string(s.Engine) + ")"
		}
		lines[i] = []string{s.Stage, client, dash(s.Operation), dash(lacking(s)), p.paint(w, verdictColor(s.Verdict), s.Verdict), clip(dash(s.Detail), most)}
	}
	columns(w, []string{"STAGE", "CLIENT", "OPERATION", "NEEDS", p.paint(w, bold, "VERDICT"), "DETAIL"}, lines)
	p.writeMapping(w, plan)
	for _, s := range plan.Stages {
		if s.Verdict == sdk.PlanRefused {
			fmt.Fprintf(w, "\n%s %s: %s (%s)\n", p.paint(w, red, "refused:"), orElse(s.Field, s.Stage), s.Detail, s.Code)
		}
	}
	for _, problem := range plan.Write.Problems {
		fmt.Fprintf(w, "\n%s %s (%s)\n", p.paint(w, red, "in the way:"), strings.TrimPrefix(problem.Column+": "+problem.Message, ": "), problem.Code)
	}
	p.writePromise(w, plan)
	p.writeSample(w, plan.Sample)
}

// lacking lists what a stage needs, and marks what it has not.
func lacking(s sdk.PlanStage) string {
	has := func(list []string, name string) bool {
		for _, one := range list {
			if one == name {
				return true
			}
		}
		return false
	}
	out := make([]string, len(s.Required))
	for i, name := range s.Required {
		out[i] = name
		switch {
		case s.Engine == "": // the client is not known, or not to be known
		case !has(s.Supported, name):
			out[i] += " (not supported)"
		case !has(s.Granted, name):
			out[i] += " (not granted)"
		}
	}
	return strings.Join(out, ", ")
}

// writeMapping writes the columns: what they are where they come from, behind the
// transforms, and at the target.
func (p *program) writeMapping(w io.Writer, plan *sdk.PipelinePlan) {
	if plan.Result == nil {
		return
	}
	source := map[string]record.Type{}
	if plan.Source != nil {
		for _, c := range plan.Source.Columns {
			source[c.Name] = c.Type
		}
	}
	native := map[string]string{}
	for _, m := range plan.Write.Mapping {
		native[m.Column] = m.Native
		if m.New {
			native[m.Column] += " (new)"
		}
	}
	heading := []string{"COLUMN", "SOURCE", "RESULT"}
	if len(native) > 0 {
		heading = append(heading, "TARGET")
	}
	var lines [][]string
	for _, c := range plan.Result.Columns {
		was := "computed"
		if t, ok := source[c.Name]; ok {
			was = t.String()
		}
		line := []string{printable(c.Name), was, c.Type.String(), dash(native[c.Name])}
		lines = append(lines, line[:len(heading)])
	}
	fmt.Fprintln(w)
	columns(w, heading, lines)
}

func (p *program) writePromise(w io.Writer, plan *sdk.PipelinePlan) {
	fmt.Fprintln(w)
	fact := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-11s %s\n", name, strings.ReplaceAll(value, "\n", "\n            ")) // below the first line
		}
	}
	write := string(plan.Write.Mode) + plan.Write.Format
	if len(plan.Write.Key) > 0 {
		write += " by " + strings.Join(plan.Write.Key, ", ")
	}
	fact("write", write)
	fact("creates", plan.Write.Creates)
	for _, statement := range plan.Write.Alters {
		fact("alters", statement)
	}
	fact("tasks", taskLine(plan.Tasks))
	fact("delivery", strings.ReplaceAll(plan.Delivery.Class, "_", " ")+": "+plan.Delivery.Reason)
	fact("checkpoint", plan.Checkpoint)
	for _, note := range plan.Write.Notes {
		fact("note", note)
	}
}

func taskLine(t sdk.PlanTasks) string {
	text := "not known before the backend is asked"
	if t.Count > 0 {
		text = counted(int64(t.Count), "task") + fmt.Sprintf(", %d at once", t.Parallel)
	}
	if t.Rows >= 0 {
		text += ", about " + grouped(t.Rows) + " rows"
	}
	if t.Bytes > 0 {
		text += ", " + volume(float64(t.Bytes))
	}
	if t.Reason != "" {
		text += "; " + t.Reason
	}
	return text
}

// writeSample writes what came of some rows.
func (p *program) writeSample(w io.Writer, found *sdk.PlanSampled) {
	if found == nil {
		return
	}
	fmt.Fprintf(w, "\n%s %s read, %d would be written, %d could not go on\n", p.paint(w, bold, "sample:"), counted(int64(found.Read), "row"), len(found.Out), len(found.Dead))
	for _, row := range found.Out {
		where := strings.TrimSpace(row.Op + " " + printable(row.Route))
		fmt.Fprintf(w, "  %s\n", clip(strings.TrimSpace(where+" "+printable(string(row.Row))), 200))
	}
	for _, row := range found.Dead {
		var text string
		if json.Unmarshal(row.Row, &text) != nil {
			text = string(row.Row)
		}
		fmt.Fprintf(w, "  %s %s: %s\n    %s\n", p.paint(w, red, "dead"), strings.TrimSpace(row.Stage+" "+printable(row.Column)), printable(row.Reason), clip(printable(text), 200))
	}
	if found.Note != "" {
		fmt.Fprintln(w, "  "+found.Note)
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
