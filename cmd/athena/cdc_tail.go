package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// chosen is what the flags that choose changes say.
type chosen struct {
	tables, ops []string
	where, from string
}

func (c *chosen) flags(cmd *cobra.Command, from string) {
	f := cmd.Flags()
	tablesFlag(cmd, &c.tables, "tables that are wanted, such as public.orders or public.*; may be repeated (default all)")
	f.StringSliceVar(&c.ops, "ops", nil, "operations that are wanted, such as insert,update (default all)")
	f.StringVar(&c.where, "where", "", "condition in CEL over op, schema, table, key, before and after")
	f.StringVar(&c.from, "from", "", "where to begin: now, earliest, a position, or an instant such as 2026-01-31T15:04:05Z "+from)
	names := make([]string, 0, len(cdc.Ops()))
	for _, op := range cdc.Ops() {
		names = append(names, string(op))
	}
	must(cmd.RegisterFlagCompletionFunc("ops", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]string{"now", "earliest"}, cobra.ShellCompDirectiveNoFileComp)))
}

func (c *chosen) operations() (ops []cdc.Op, err error) {
	for _, name := range c.ops {
		op := cdc.Op(strings.TrimSpace(name))
		if !slices.Contains(cdc.Ops(), op) {
			return nil, usagef("--ops has %q; the operations are %s", name, strings.Trim(fmt.Sprint(cdc.Ops()), "[]"))
		}
		ops = append(ops, op)
	}
	return ops, nil
}

func (p *program) cdcTail() *cobra.Command {
	var client string
	var want chosen
	var most int
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Write changes as they come",
		Long: `Writes one line for each change: when it was committed, what happened, to which row, and
what it is now. With --json each change is a line of JSON, as the stream has it.

A connection that is cut is made again, and nothing is missed or repeated. The pos of a
change is where another tail goes on: --from POS.`,
		Example: `  athena cdc tail --client shop
  athena cdc tail --client shop --tables public.orders,public.order_items --ops insert,delete
  athena cdc tail --client shop --tables public.orders --where 'after.status == "paid"' --from earliest
  athena cdc tail --client shop --from 2026-01-31T15:04:05Z --max 100 --json > changes.ndjson`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ops, err := want.operations()
			if err != nil {
				return err
			}
			if most < 0 {
				return usagef("--max is %d; it must be positive, or 0 for no end", most)
			}
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			return p.tail(cmd.Context(), c, sdk.ChangesQuery{Tables: tableNames(want.tables), Ops: ops, Where: want.where, From: want.from}, most)
		},
	}
	p.clientFlag(cmd, &client, "client whose changes are wanted (ATHENA_CLIENT)")
	want.flags(cmd, "(default now)")
	cmd.Flags().IntVar(&most, "max", 0, "end after so many changes")
	return cmd
}

// tail writes changes until there were enough, an error, or an interrupt. It
// leaves nothing of a change unwritten when it waits for the next one.
func (p *program) tail(ctx context.Context, c *sdk.CDC, q sdk.ChangesQuery, most int) error {
	n, last := 0, cdc.Position("")
	for change, err := range c.Changes(ctx, q) {
		if err != nil {
			if last != "" && ctx.Err() != nil && terminal(p.stderr) {
				fmt.Fprintln(p.stderr, p.paint(p.stderr, dim, "the next one comes with --from "+string(last)))
			}
			return err
		}
		if err := p.writeChange(p.stdout, change); err != nil {
			return err
		}
		last = change.Pos
		if n++; n == most {
			return nil
		}
	}
	return nil
}

func (p *program) writeChange(w io.Writer, c *cdc.Change) error {
	if p.asJSON {
		_, err := w.Write(append(cdc.NewEncoder(c.Client).Append(nil, c), '\n'))
		return err
	}
	_, err := fmt.Fprintln(w, p.changeLine(w, c))
	return err
}

func opColor(op cdc.Op) color {
	switch op {
	case cdc.Insert:
		return green
	case cdc.Update:
		return blue
	case cdc.Delete, cdc.Truncate, cdc.DeletePartition, cdc.DeleteRange:
		return red
	}
	return dim
}

// changeLine is a change for people: time, operation, table, key, and what
// changed.
func (p *program) changeLine(w io.Writer, c *cdc.Change) string {
	at := strings.Repeat("-", len(time.TimeOnly)+4)
	if c.Tx != nil {
		at = c.Tx.At.Local().Format("15:04:05.000")
	}
	parts := []string{p.paint(w, dim, at), p.paint(w, opColor(c.Op), fmt.Sprintf("%-8s", c.Op))}
	if c.Schema != "" || c.Table != "" {
		parts = append(parts, printable(driver.TableName{Schema: c.Schema, Table: c.Table}.String()))
	}
	key := row(c.Key)
	if len(key) > 0 {
		parts = append(parts, p.paint(w, bold, strings.Join(assigned(key), " ")))
	}
	switch c.Op {
	case cdc.Schema:
		for _, col := range c.Columns {
			text := printable(col.Name + " " + col.Type)
			if col.Key {
				text += " (key)"
			}
			parts = append(parts, text+",")
		}
		parts[len(parts)-1] = strings.TrimSuffix(parts[len(parts)-1], ",")
	case cdc.Message:
		parts = append(parts, printable(c.Prefix), content(c.Content))
	default:
		parts = append(parts, p.changed(w, c, key)...)
	}
	if c.TTL != 0 {
		parts = append(parts, p.paint(w, dim, fmt.Sprintf("for %s", time.Duration(c.TTL)*time.Second)))
	}
	if c.Late {
		parts = append(parts, p.paint(w, yellow, "late"))
	}
	return strings.Join(parts, "  ")
}

// row takes an object apart; what is none has no members.
func row(raw json.RawMessage) []cell {
	if raw == nil {
		return nil
	}
	list, err := cells(raw)
	if err != nil {
		return nil
	}
	return list
}

// changed lists the columns that are not of the key: what they are, and what
// they were where that is known and another thing.
func (p *program) changed(w io.Writer, c *cdc.Change, key []cell) (out []string) {
	before := map[string]json.RawMessage{}
	was, is := row(c.Before), row(c.After)
	for _, b := range was {
		before[b.name] = b.value
	}
	ofKey := func(one cell) bool {
		return slices.ContainsFunc(key, func(k cell) bool { return k.name == one.name && bytes.Equal(k.value, one.value) })
	}
	if c.Range != nil {
		out = append(out, bounds(c.Range)...)
	}
	if c.After == nil {
		out = append(out, assigned(slices.DeleteFunc(was, ofKey))...)
	}
	for _, a := range is {
		b, known := before[a.name]
		switch {
		case known && bytes.Equal(a.value, b):
		case known:
			out = append(out, printable(a.name)+"="+p.paint(w, dim, shown(b)+"→")+shown(a.value))
		case !ofKey(a):
			out = append(out, assigned([]cell{a})...)
		}
	}
	for _, d := range row(c.Delta) {
		out = append(out, printable(d.name)+"~"+shown(d.value))
	}
	for _, name := range c.Unchanged {
		out = append(out, p.paint(w, dim, printable(name)+"=(as it was)"))
	}
	return out
}

// bounds are those of a range, as conditions.
func bounds(raw json.RawMessage) (out []string) {
	var r struct {
		From, To *struct {
			Key       json.RawMessage
			Inclusive bool
		}
	}
	if json.Unmarshal(raw, &r) != nil {
		return []string{shown(raw)}
	}
	tell := func(op string, inclusive bool, key json.RawMessage) {
		if inclusive {
			op += "="
		}
		list := row(key)
		names, values := make([]string, len(list)), make([]string, len(list))
		for i, c := range list {
			names[i], values[i] = printable(c.name), shown(c.value)
		}
		out = append(out, strings.Join(names, ",")+op+strings.Join(values, ","))
	}
	if r.From != nil {
		tell(">", r.From.Inclusive, r.From.Key)
	}
	if r.To != nil {
		tell("<", r.To.Inclusive, r.To.Key)
	}
	return out
}

func assigned(list []cell) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = printable(c.name) + "=" + shown(c.value)
	}
	return out
}

// printable takes out of a name what could steer a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '·'
		}
		return r
	}, s)
}

// content is a message's, as text where it is one.
func content(raw []byte) string {
	if !utf8.Valid(raw) {
		return counted(int64(len(raw)), "byte")
	}
	return clip(printable(string(raw)), widest)
}

// writeLines writes changes of any envelope: lines for people if they are
// athena's, else as they are.
func (p *program) writeLines(w io.Writer, changes []json.RawMessage) error {
	b := bufio.NewWriter(w)
	for _, raw := range changes {
		var c cdc.Change
		if !p.asJSON && cdc.Decode(raw, &c) == nil {
			fmt.Fprintln(b, p.changeLine(w, &c))
			continue
		}
		b.Write(raw)
		b.WriteByte('\n')
	}
	return b.Flush()
}
