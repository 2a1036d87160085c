package main

import (
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) pipelineDead() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "Rows of a pipeline that could not go on",
		Example: `  athena pipeline dead list orders
  athena pipeline dead redrive orders
  athena pipeline dead delete orders --upto 1234`,
	}
	cmd.AddCommand(p.pipelineDeadList(), p.pipelineDeadRedrive(), p.pipelineDeadDelete())
	return cmd
}

func (p *program) pipelineDeadList() *cobra.Command {
	var limit int
	var run, stage string
	cmd := &cobra.Command{
		Use:   "list NAME|RUN",
		Short: "List the rows that could not go on, of a pipeline or a run, oldest first",
		Long: `Shows where and why each row could not go on. With --json each is a line of JSON, with
the row as it was.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case limit < 0:
				return usagef("--limit is %d; it must be positive, or 0 for all", limit)
			case run != "" && !isRun(run):
				return usagef("--run is %q; it must be the id of a run, which athena pipeline runs shows", run)
			case run != "" && isRun(args[0]):
				return usagef("give either RUN or --run")
			}
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			rows := pl.Dead(cmd.Context(), args[0])
			switch {
			case isRun(args[0]):
				rows = api.Run(args[0]).Dead(cmd.Context())
			case run != "":
				info, err := api.Run(run).Get(cmd.Context())
				if err != nil {
					return err
				}
				if info.Pipeline != args[0] {
					return athena.Errorf(athena.CodeNotFound, "run %s is none of pipeline %q", run, args[0])
				}
				rows = api.Run(run).Dead(cmd.Context())
			}
			n := 0
			for row, err := range rows {
				if err == nil && stage != "" && row.Stage != stage {
					continue
				}
				if err == nil {
					err = p.writeDead(p.stdout, row)
				}
				if err != nil {
					return err
				}
				if n++; n == limit {
					break
				}
			}
			if n == 0 && !p.asJSON {
				fmt.Fprintln(p.stdout, "no rows")
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "most rows to list; 0 for all")
	cmd.Flags().StringVar(&run, "run", "", "only those of this run")
	cmd.Flags().StringVar(&stage, "stage", "", "only those of this stage, such as source, transforms[0] or sink")
	return cmd
}

func (p *program) writeDead(w io.Writer, row sdk.DeadRow) error {
	if p.asJSON {
		return writeLine(w, row)
	}
	where := row.Stage
	if row.Column != "" {
		where += " at column " + printable(row.Column)
	}
	if row.From != "" {
		where += " from " + printable(row.From)
	}
	if row.Pos != "" {
		where += " at " + row.Pos
	}
	what := row.Text
	if row.Record != nil {
		what = string(row.Record)
	}
	_, err := fmt.Fprintf(w, "%s  %s  %s: %s\n    %s\n", p.paint(w, bold, fmt.Sprint(row.Seq)), p.paint(w, dim, ago(row.At)), where,
		p.paint(w, red, printable(row.Reason)), clip(printable(what), 200))
	return err
}

func (p *program) pipelineDeadRedrive() *cobra.Command {
	var pairs []string
	var detach bool
	cmd := &cobra.Command{
		Use:   "redrive NAME",
		Short: "Run the rows that could not go on, by the definition as it is now",
		Long: `Takes on the rows that are kept when the run is made. Those that make it are removed; the
others are kept with their new cause. It is followed as athena pipeline run is.`,
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
			info, err := pl.Redrive(cmd.Context(), args[0], sdk.RunOptions{Params: values, IdempotencyKey: uuid.NewString()})
			if err != nil {
				p.tellPlan(err)
				return err
			}
			return p.launched(cmd.Context(), api, info, detach)
		},
	}
	cmd.Flags().BoolVar(&detach, "detach", false, "do not follow the run")
	cmd.Flags().StringArrayVar(&pairs, "param", nil, "value of a template's parameter, as NAME=VALUE; may be repeated")
	return cmd
}

func (p *program) pipelineDeadDelete() *cobra.Command {
	var upto uint64
	cmd := &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete the rows that could not go on",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completePipeline,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, pl, err := p.pipelines()
			if err != nil {
				return err
			}
			defer api.Close()
			n, err := pl.DeleteDead(cmd.Context(), args[0], upto)
			if err != nil {
				return err
			}
			return p.say(map[string]int64{"deleted": n}, "%s deleted", counted(n, "row"))
		},
	}
	cmd.Flags().Uint64Var(&upto, "upto", 0, "the number of the last row that is to go (default all)")
	return cmd
}
