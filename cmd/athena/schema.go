package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) schemaCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Describe what a client's database holds",
		Example: `  athena schema tables --client shop
  athena schema columns --client shop public.orders`,
	}
	cmd.AddCommand(
		p.describeCommand("list", "List schemas", 0, func(ctx context.Context, c *sdk.Client, _ string) (any, error) {
			overview, err := c.Schema(ctx)
			return overview.Schemas, err
		}),
		p.describeCommand("tables", "List tables and views, of one schema or of all", 1, func(ctx context.Context, c *sdk.Client, name string) (any, error) {
			return c.Tables(ctx, name)
		}),
		p.describeCommand("columns", "Describe a table's columns", -1, func(ctx context.Context, c *sdk.Client, name string) (any, error) {
			schema, table := split(name)
			return c.Columns(ctx, schema, table)
		}),
		p.describeCommand("constraints", "Describe a table's constraints", -1, func(ctx context.Context, c *sdk.Client, name string) (any, error) {
			schema, table := split(name)
			return c.Constraints(ctx, schema, table)
		}),
		p.describeCommand("indexes", "Describe a table's indexes", -1, func(ctx context.Context, c *sdk.Client, name string) (any, error) {
			schema, table := split(name)
			return c.Indexes(ctx, schema, table)
		}),
		p.describeCommand("migrations", "List the migrations that were applied", 0, func(ctx context.Context, c *sdk.Client, _ string) (any, error) {
			m, err := c.Migrations(ctx)
			if m.Message != "" {
				fmt.Fprintln(p.stderr, m.Message)
			}
			return m.Applied, err
		}),
	)
	return cmd
}

// split takes schema.table apart.
func split(name string) (schema, table string) {
	if schema, table, ok := strings.Cut(name, "."); ok {
		return schema, table
	}
	return "", name
}

// describeCommand takes up to names arguments, or exactly one if it is
// negative.
func (p *program) describeCommand(name, short string, names int, do func(context.Context, *sdk.Client, string) (any, error)) *cobra.Command {
	var client string
	use, args := name, cobra.NoArgs
	switch {
	case names < 0:
		use, args = name+" TABLE", cobra.ExactArgs(1)
	case names > 0:
		use, args = name+" [SCHEMA]", cobra.MaximumNArgs(1)
	}
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  args,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.clientName(client)
			if err != nil {
				return err
			}
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			v, err := do(cmd.Context(), api.Client(c), strings.Join(args, ""))
			if err != nil {
				return err
			}
			if p.asJSON {
				return writeJSON(p.stdout, v)
			}
			return p.describeRows(v)
		},
	}
	p.clientFlag(cmd, &client, "client to describe (ATHENA_CLIENT)")
	return cmd
}

// describeRows writes a list of objects as a table, and anything else as JSON.
// An object may lack members that others have.
func (p *program) describeRows(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return writeJSON(p.stdout, v)
	}
	var names []string
	rows := make([]map[string]json.RawMessage, len(list))
	for i, row := range list {
		members, err := cells(row)
		if err != nil {
			return writeJSON(p.stdout, v)
		}
		rows[i] = map[string]json.RawMessage{}
		at := 0
		for _, m := range members {
			rows[i][m.name] = m.value
			if known := slices.Index(names, m.name); known >= 0 {
				at = known + 1
				continue
			}
			names = slices.Insert(names, at, m.name)
			at++
		}
	}
	t := &table{}
	for _, row := range rows {
		line := make([]cell, len(names))
		for i, name := range names {
			line[i] = cell{name, row[name]}
			if line[i].value == nil {
				line[i].value = json.RawMessage(`""`)
			}
		}
		t.add(p.stdout, line)
	}
	t.flush(p.stdout)
	return nil
}
