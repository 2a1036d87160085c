package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) pipelineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "pipeline",
		Aliases: []string{"pipelines"},
		Short:   "Plan, run and follow pipelines",
		Example: `  athena pipeline plan -f orders.yaml --level sample
  athena pipeline test -f orders.yaml
  athena pipeline run -f orders.yaml
  athena pipeline apply -f pipelines.d
  athena pipeline run orders --param region=eu
  athena pipeline start orders-changes
  athena pipeline dead list orders`,
	}
	cmd.AddCommand(p.pipelinePlan(), p.pipelineTest(), p.pipelineApply(), p.pipelineList(), p.pipelineGet(), p.pipelineDelete(),
		p.pipelineRun(), p.pipelineStart(), p.pipelineWatch(), p.pipelineRuns(), p.pipelineCancel(),
		p.pipelineAct("pause", "Have a schedule start no more runs, or a stream or run wait", (*sdk.Pipelines).Pause, (*sdk.Run).Pause),
		p.pipelineAct("resume", "Take a pause back, or take up again what has failed", (*sdk.Pipelines).Resume, (*sdk.Run).Resume),
		p.pipelineAct("stop", "Have a stream finish what it has read, and end", (*sdk.Pipelines).Stop, nil),
		p.pipelineDead())
	return cmd
}

// pipelines is the part of the server that the commands speak to.
func (p *program) pipelines() (*sdk.API, *sdk.Pipelines, error) {
	api, err := p.api()
	if err != nil {
		return nil, nil, err
	}
	return api, api.Pipelines(), nil
}

// completePipeline completes the one argument of a command with names of
// pipelines.
func (p *program) completePipeline(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, pl, err := p.pipelines()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer api.Close()
	list, err := pl.List(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]string, len(list))
	for i, info := range list {
		names[i] = info.Name + "\t" + string(info.Kind) + ", " + ends(info)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func ends(info sdk.PipelineInfo) string {
	return fmt.Sprintf("%s %s to %s %s", dash(info.Source.Client), info.Source.Kind, dash(info.Sink.Client), info.Sink.Kind)
}

// A chosenPipeline is what a command is told of a definition: a file of one, or
// the name of one that is stored, and values of its parameters.
type chosenPipeline struct {
	file  string
	pairs []string
}

func (c *chosenPipeline) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.file, "file", "f", "", "file with a definition, or - for standard input")
	cmd.Flags().StringArrayVar(&c.pairs, "param", nil, "value of a template's parameter, as NAME=VALUE; may be repeated")
}

// params reads --param.
func (c *chosenPipeline) params() (map[string]string, error) {
	values := map[string]string{}
	for _, pair := range c.pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, usagef("--param is %q; it must be NAME=VALUE", pair)
		}
		if _, twice := values[name]; twice {
			return nil, usagef("--param names %s twice", name)
		}
		values[name] = value
	}
	return values, nil
}

// choose returns the definition of the file, with its parameters filled in, or nil
// and the name that stands in its place.
func (p *program) choose(c *chosenPipeline, args []string) (def *spec.Pipeline, name string, values map[string]string, err error) {
	if values, err = c.params(); err != nil {
		return nil, "", nil, err
	}
	switch {
	case c.file == "" && len(args) == 0:
		return nil, "", nil, usagef("no pipeline is named; give NAME of one that is stored, or -f FILE")
	case c.file != "" && len(args) > 0:
		return nil, "", nil, usagef("give either NAME or -f FILE")
	case c.file == "":
		return nil, args[0], values, nil
	}
	if def, err = p.readPipeline(c.file); err != nil {
		return nil, "", nil, err
	}
	def, err = def.Instantiate(values)
	return def, "", values, err
}

// readPipeline reads a file's definition. What is wrong with it is told line by
// line, with the name of the file.
func (p *program) readPipeline(file string) (*spec.Pipeline, error) {
	name := file
	var text []byte
	var err error
	if file == "-" {
		name = "standard input"
		text, err = io.ReadAll(io.LimitReader(p.stdin, maxStatement))
	} else {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, usage{err}
	}
	def, err := spec.Decode(text)
	if err != nil {
		return nil, misread(name, err)
	}
	return def, nil
}

// misread puts a file's name before each thing that is wrong with it.
func misread(file string, err error) error {
	own := athena.AsError(err)
	problems, _ := own.Details["problems"].([]spec.Problem)
	if len(problems) == 0 {
		return err
	}
	lines := make([]string, len(problems))
	for i, one := range problems {
		lines[i] = file
		if one.Line > 0 {
			lines[i] += fmt.Sprintf(":%d", one.Line)
		}
		if one.Field != "" {
			lines[i] += ": " + one.Field
		}
		lines[i] += ": " + one.Message
	}
	e := athena.Errorf(own.Code, "%s", strings.Join(lines, "\n        "))
	e.Details = own.Details
	return e
}

func (p *program) pipelineApply() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Store the definition of a file, or of each file in a directory",
		Long: `Makes the server hold the definitions of a file, of the .yaml, .yml and .json files of a
directory, or of standard input. A definition that cannot be run is refused, and its plan
is shown. What is stored already in this way stays as it is. No pipeline is ever deleted.

A change that somebody else has made since the command began is not overwritten.`,
		Example: `  athena pipeline apply -f orders.yaml
  athena pipeline apply -f pipelines.d`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			defs, err := p.readPipelines(file)
			if err != nil {
				return err
			}
			return p.applyPipelines(cmd.Context(), defs)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file or directory of definitions, or - for standard input")
	return cmd
}

// pipelineFiles lists the files of definitions that --file means.
func pipelineFiles(file string) (files []string, err error) {
	if file == "" {
		return nil, usagef("no definitions are named; give -f FILE, a directory, or -")
	}
	if info, err := os.Stat(file); err != nil || !info.IsDir() {
		return []string{file}, nil
	}
	for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
		found, err := filepath.Glob(filepath.Join(file, pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	slices.Sort(files)
	if len(files) == 0 {
		return nil, usagef("there are no definitions in %s", file)
	}
	return files, nil
}

func (p *program) readPipelines(file string) (defs []*spec.Pipeline, err error) {
	files, err := pipelineFiles(file)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, f := range files {
		def, err := p.readPipeline(f)
		if err == nil && def.Name == "" {
			err = athena.Errorf(athena.CodeInvalidRequest, "%s: name: a definition that is stored needs one", f).At("name")
		}
		defs, errs = append(defs, def), append(errs, err)
	}
	return defs, errors.Join(errs...)
}

// A storedPipeline is what became of an applied definition.
type storedPipeline struct {
	Name       string `json:"name"`
	Verdict    string `json:"verdict"` // created, updated or unchanged
	Generation int    `json:"generation"`
	Revision   uint64 `json:"revision"`
}

// applyPipelines stores definitions one after the other and reports on each, also
// of those before one that failed.
func (p *program) applyPipelines(ctx context.Context, defs []*spec.Pipeline) error {
	api, pl, err := p.pipelines()
	if err != nil {
		return err
	}
	defer api.Close()
	reports := []storedPipeline{}
	for _, def := range defs {
		var report storedPipeline
		if report, err = applyPipeline(ctx, pl, def); err != nil {
			p.tellPlan(err)
			err = fmt.Errorf("pipeline %q: %w", def.Name, err)
			break
		}
		reports = append(reports, report)
	}
	return errors.Join(p.show(reports, func(w io.Writer) {
		for _, r := range reports {
			fmt.Fprintf(w, "%s  %s at generation %d\n", r.Name, r.Verdict, r.Generation)
		}
	}), err)
}

// applyPipeline stores a definition over the revision that it has seen.
func applyPipeline(ctx context.Context, pl *sdk.Pipelines, def *spec.Pipeline) (storedPipeline, error) {
	report, expected := storedPipeline{Name: def.Name, Verdict: "created"}, sdk.Absent
	old, err := pl.Get(ctx, def.Name, 0)
	switch {
	case err == nil:
		report.Verdict, expected = "updated", int64(old.Revision)
	case athena.CodeOf(err) != athena.CodeNotFound:
		return report, err
	}
	info, err := pl.Put(ctx, def.Name, spec.Encode(def), expected)
	if err != nil {
		return report, err
	}
	if report.Generation, report.Revision = info.Generation, info.Revision; expected == int64(info.Revision) {
		report.Verdict = "unchanged"
	}
	return report, nil
}

func (p *program) pipelineList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List pipelines, each with its newest run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			list, err := pl.List(cmd.Context())
			if err != nil {
				return err
			}
			return p.show(list, func(w io.Writer) { p.writePipelines(w, list) })
		},
	}
}

func (p *program) writePipelines(w io.Writer, list []sdk.PipelineInfo) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no pipelines")
		return
	}
	most := clipped(w, 50)
	lines := make([][]string, len(list))
	for i, info := range list {
		state, when, read, why := p.paint(w, dim, "never run"), "-", "-", "-"
		if r := info.LastRun; r != nil {
			if r.Cause != nil {
				why = clip(placed(r.Cause.Stage, r.Cause.Message), most)
			}
			state, when, read = p.paint(w, runColor(r.State), string(r.State)), ago(cmp.Or(r.EndedAt, r.StartedAt, r.CreatedAt)), grouped(r.Counts.Written)
		}
		lines[i] = []string{info.Name, string(info.Kind), ends(info), state, when, read, grouped(info.Dead), nextRun(info), why}
	}
	columns(w, []string{"NAME", "KIND", "FROM AND TO", p.paint(w, bold, "LAST RUN"), "WHEN", "ROWS", "DEAD", "NEXT", "WHY"}, lines)
}

func nextRun(info sdk.PipelineInfo) string {
	switch {
	case info.Schedule == "":
		return "-"
	case info.Paused:
		return "paused"
	}
	return ago(info.NextAt)
}

func runColor(s sdk.RunState) color {
	switch s {
	case sdk.RunSucceeded, sdk.RunStreaming:
		return green
	case sdk.RunFailed:
		return red
	case sdk.RunDegraded, sdk.RunPaused, sdk.RunCancelled, sdk.RunDraining:
		return yellow
	case sdk.RunRunning, sdk.RunStarting, sdk.RunCommitting, sdk.RunSnapshotting:
		return blue
	}
	return dim
}

func (p *program) pipelineGet() *cobra.Command {
	var generation int
	cmd := &cobra.Command{
		Use:               "get NAME",
		Short:             "Show a pipeline's definition, as apply reads it",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			if generation < 0 {
				return usagef("--generation is %d; it must be positive", generation)
			}
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			info, err := pl.Get(cmd.Context(), args[0], generation)
			if err != nil {
				return err
			}
			if p.asJSON {
				return writeJSON(p.stdout, info)
			}
			text, err := definitionYAML(info.Spec)
			if err != nil {
				return err
			}
			fmt.Fprintf(p.stdout, "# generation %d, stored %s by key %s\n", info.Generation, info.UpdatedAt.Local().Format(time.DateTime), info.Key)
			_, err = p.stdout.Write(text)
			return err
		},
	}
	cmd.Flags().IntVar(&generation, "generation", 0, "the version that is wanted (default the newest)")
	return cmd
}

// definitionYAML writes a definition in the form that people write.
func definitionYAML(raw json.RawMessage) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil { // JSON is YAML
		return nil, err
	}
	block(&doc)
	quoteMerges(&doc)
	return yaml.Marshal(&doc)
}

// quoteMerges keeps texts that are "<<" from being read as YAML's merge.
func quoteMerges(n *yaml.Node) {
	if n.Value == "<<" {
		n.Style = yaml.SingleQuotedStyle
	}
	for _, c := range n.Content {
		quoteMerges(c)
	}
}

func (p *program) pipelineDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a pipeline that has no live run, and its dead letters",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			if err := pl.Delete(cmd.Context(), args[0]); err != nil {
				return err
			}
			return p.say(map[string]string{"deleted": args[0]}, "%s deleted", args[0])
		},
	}
}
