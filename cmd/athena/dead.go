package main

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) deadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "See and remove what could not be processed",
		Example: `  athena dead list --kind hook
  athena dead delete 42`,
	}
	cmd.AddCommand(p.deadList(), p.deadDelete())
	return cmd
}

func (p *program) deadList() *cobra.Command {
	var kind string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters, newest first; they are kept for 14 days",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			list := []sdk.DeadLetter{}
			for d, err := range api.Admin().Dead(cmd.Context(), kind) {
				if err != nil {
					return err
				}
				if list = append(list, d); len(list) == limit {
					break
				}
			}
			return p.show(list, func(w io.Writer) {
				if len(list) == 0 {
					fmt.Fprintln(w, "no dead letters")
					return
				}
				lines := make([][]string, len(list))
				for i, d := range list {
					lines[i] = []string{strconv.FormatUint(d.Seq, 10), d.At.Local().Format(time.DateTime), d.Kind, d.Owner, clip(dash(d.Reason), 80)}
				}
				columns(w, []string{"SEQ", "AT", "KIND", "OWNER", "REASON"}, lines)
			})
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", "only of this kind, such as job or hook")
	cmd.Flags().IntVar(&limit, "limit", 100, "most letters to list")
	return cmd
}

func (p *program) deadDelete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete SEQ...",
		Short: "Remove dead letters",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			for _, arg := range args {
				seq, err := strconv.ParseUint(arg, 10, 64)
				if err != nil {
					return usagef("%q is no dead letter's number; athena dead list shows them", arg)
				}
				if err := api.Admin().DeleteDead(cmd.Context(), seq); err != nil {
					return err
				}
			}
			return p.say(map[string]any{"deleted": args}, "%s deleted", counted(int64(len(args)), "letter"))
		},
	}
}
