package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) cdcSnapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Read rows as they are now, while changes go on",
		Long: `Rows of a snapshot are changes of op read. They stand in the stream among the changes,
each where it is right: a row that is changed later is changed behind its read.`,
		Example: `  athena cdc snapshot start --client shop --tables public.orders
  athena cdc snapshot start --client shop --tables public.orders --where "placed_at > '2026-01-01'"
  athena cdc snapshot list --client shop
  athena cdc snapshot cancel 01a20e34-… --client shop`,
	}
	cmd.AddCommand(p.snapshotStart(), p.snapshotList(), p.snapshotCancel())
	return cmd
}

func (p *program) snapshotStart() *cobra.Command {
	var client, where string
	var tables []string
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Have the rows of captured tables read",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := tableNames(tables)
			if len(names) == 0 {
				return usagef("no table is named; give --tables, such as public.orders")
			}
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			id, err := c.StartSnapshot(cmd.Context(), names, where)
			if err != nil {
				return err
			}
			return p.say(map[string]string{"id": id}, "%s", id)
		},
	}
	p.clientFlag(cmd, &client, "client whose rows are read (ATHENA_CLIENT)")
	tablesFlag(cmd, &tables, "captured tables to read; may be repeated")
	cmd.Flags().StringVar(&where, "where", "", "condition in the engine's language; all rows without")
	return cmd
}

func (p *program) snapshotList() *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List snapshots, and how far they are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			list, err := c.Snapshots(cmd.Context())
			if err != nil {
				return err
			}
			return p.show(list, func(w io.Writer) {
				if len(list) == 0 {
					fmt.Fprintln(w, "no snapshots")
				}
				for _, s := range list {
					p.writeSnapshot(w, s)
				}
			})
		},
	}
	p.clientFlag(cmd, &client, "client whose snapshots they are (ATHENA_CLIENT)")
	return cmd
}

func (p *program) writeSnapshot(w io.Writer, s sdk.Snapshot) {
	rows, total := s.Rows()
	names := make([]string, len(s.Tables))
	for i, t := range s.Tables {
		names[i] = t.Table.String()
	}
	text := fmt.Sprintf("%s of %s: %d of about %d rows, %s", s.State, strings.Join(names, ", "), rows, total, ago(s.At))
	if s.Error != "" {
		text += ": " + s.Error
	}
	fmt.Fprintf(w, "%-12s %s  %s\n", "snapshot", s.ID, text)
}

func (p *program) snapshotCancel() *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "End a snapshot; the rows that were read stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			if err := c.CancelSnapshot(cmd.Context(), args[0]); err != nil {
				return err
			}
			return p.say(map[string]string{"cancelled": args[0]}, "cancelled")
		},
	}
	p.clientFlag(cmd, &client, "client whose snapshot it is (ATHENA_CLIENT)")
	return cmd
}
