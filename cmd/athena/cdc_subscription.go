package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) cdcSubscription() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "subscription",
		Aliases: []string{"subscriptions", "sub"},
		Short:   "Manage durable readers of changes",
		Long: `The server keeps how far a subscription is. One with --deliver pull is read with pull, and
moves on with ack. One with --deliver webhook is sent signed batches, tried again for
about three days; athena dead list --kind cdc-hook shows those that were given up.`,
		Example: `  athena cdc subscription create billing --client shop --tables public.orders --from earliest
  athena cdc subscription pull billing --client shop --max 100 --ack
  athena cdc subscription create search --client shop --deliver webhook --webhook https://search.example.com/changes
  athena cdc subscription list --client shop
  athena cdc subscription ack billing 0000000001B3A2F8.00000003 --client shop --rewind
  athena cdc subscription delete billing --client shop`,
	}
	cmd.AddCommand(p.subscriptionList(), p.subscriptionGet(), p.subscriptionCreate(), p.subscriptionDelete(), p.subscriptionPull(), p.subscriptionAck())
	return cmd
}

func (p *program) subscriptionList() *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List subscriptions, and how far they are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			list, err := c.Subscriptions(cmd.Context())
			if err != nil {
				return err
			}
			return p.show(list, func(w io.Writer) {
				if len(list) == 0 {
					fmt.Fprintln(w, "no subscriptions")
					return
				}
				lines := make([][]string, len(list))
				for i, s := range list {
					pos, at := "-", "-"
					if s.Cursor != nil {
						pos, at = string(s.Cursor.Pos), ago(s.Cursor.At)
					}
					lines[i] = []string{s.Name, s.Deliver, clip(tablesText(s.Tables), 40), pos, at, p.subscriptionState(w, s)}
				}
				columns(w, []string{"NAME", "DELIVER", "TABLES", "POSITION", "MOVED", p.paint(w, bold, "STATE")}, lines)
			})
		},
	}
	p.clientFlag(cmd, &client, "client whose changes they read (ATHENA_CLIENT)")
	return cmd
}

func tablesText(tables []string) string {
	if len(tables) == 0 {
		return "all"
	}
	return strings.Join(tables, ", ")
}

func (p *program) subscriptionState(w io.Writer, s sdk.Subscription) string {
	switch c := s.Cursor; {
	case c == nil:
		return "-"
	case c.Stopped != "":
		return p.paint(w, red, "stopped: "+c.Stopped)
	case c.Attempts > 0:
		return p.paint(w, yellow, fmt.Sprintf("tried %s, next %s", times(c.Attempts), ago(c.NextTry)))
	}
	return p.paint(w, green, "well")
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// subscriptionArg makes a command with the name of a subscription as its first
// argument.
func (p *program) subscriptionArg(use, short, what string, args cobra.PositionalArgs, do func(cmd *cobra.Command, c *sdk.CDC, args []string) error) *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  args,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, done, err := p.changesOf(client)
			if err != nil {
				return err
			}
			defer done()
			return do(cmd, c, args)
		},
	}
	p.clientFlag(cmd, &client, what+" (ATHENA_CLIENT)")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, done, err := p.changesOf(client)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer done()
		list, _ := c.Subscriptions(cmd.Context())
		names := make([]string, len(list))
		for i, s := range list {
			names[i] = s.Name + "\t" + s.Deliver
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

func (p *program) subscriptionGet() *cobra.Command {
	return p.subscriptionArg("get NAME", "Show a subscription", "client whose changes it reads", cobra.ExactArgs(1), func(cmd *cobra.Command, c *sdk.CDC, args []string) error {
		s, err := c.Subscription(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return p.showSubscription(s)
	})
}

func (p *program) showSubscription(s *sdk.Subscription) error {
	return p.show(s, func(w io.Writer) {
		fact := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "%-10s %s\n", name, value)
			}
		}
		fact("name", s.Name)
		fact("deliver", s.Deliver)
		fact("url", s.URL)
		fact("tables", tablesText(s.Tables))
		ops := make([]string, len(s.Ops))
		for i, op := range s.Ops {
			ops[i] = string(op)
		}
		fact("ops", strings.Join(ops, ", "))
		fact("where", s.Where)
		fact("envelope", s.Envelope)
		fact("key", s.Key)
		if c := s.Cursor; c != nil {
			fact("position", string(c.Pos)+", moved "+ago(c.At))
			if s.Pending != nil {
				fact("behind", counted(int64(*s.Pending), "message")+" of the stream")
			}
			if s.Deliver == "webhook" {
				fact("taken", counted(int64(c.Acked), "change"))
			}
			fact("state", p.subscriptionState(w, *s))
			if c.LastStatus != 0 {
				fact("answer", fmt.Sprint(c.LastStatus))
			}
			fact("error", c.LastError)
		}
	})
}

func (p *program) subscriptionCreate() *cobra.Command {
	var want chosen
	var spec sdk.SubscriptionSpec
	cmd := p.subscriptionArg("create NAME", "Make a subscription", "client whose changes it reads", cobra.ExactArgs(1), func(cmd *cobra.Command, c *sdk.CDC, args []string) error {
		var err error
		if spec.Ops, err = want.operations(); err != nil {
			return err
		}
		switch {
		case spec.Deliver == "webhook" && spec.URL == "":
			return usagef("--deliver webhook needs --webhook")
		case spec.Deliver != "webhook" && (spec.URL != "" || spec.Batch != 0):
			return usagef("--webhook and --batch go with --deliver webhook")
		}
		spec.Name, spec.Tables, spec.Where, spec.From = args[0], tableNames(want.tables), want.where, want.from
		s, err := c.Subscribe(cmd.Context(), spec)
		if err != nil {
			return err
		}
		return p.showSubscription(s)
	})
	f := cmd.Flags()
	want.flags(cmd, "(default now)")
	f.StringVar(&spec.Envelope, "envelope", "", "form of the changes: "+strings.Join(cdc.EnvelopeNames(), ", ")+" (default athena)")
	f.StringVar(&spec.Deliver, "deliver", "pull", "pull, or webhook")
	f.StringVar(&spec.URL, "webhook", "", "where a webhook goes")
	f.IntVar(&spec.Batch, "batch", 0, "most changes in one message of a webhook, up to 1000 (default 100)")
	must(cmd.RegisterFlagCompletionFunc("envelope", cobra.FixedCompletions(cdc.EnvelopeNames(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("deliver", cobra.FixedCompletions([]string{"pull", "webhook"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (p *program) subscriptionDelete() *cobra.Command {
	return p.subscriptionArg("delete NAME...", "Remove subscriptions, and forget how far they are", "client whose changes they read", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *sdk.CDC, args []string) error {
		for _, name := range args {
			if err := c.Unsubscribe(cmd.Context(), name); err != nil {
				return err
			}
		}
		return p.say(map[string]any{"deleted": args}, "%s deleted", counted(int64(len(args)), "subscription"))
	})
}

func (p *program) subscriptionPull() *cobra.Command {
	var most int
	var wait time.Duration
	var ack bool
	cmd := p.subscriptionArg("pull NAME", "Write the changes that were not acknowledged", "client whose changes it reads", cobra.ExactArgs(1), func(cmd *cobra.Command, c *sdk.CDC, args []string) error {
		got, err := c.Pull(cmd.Context(), args[0], most, wait)
		if err != nil {
			return err
		}
		if p.asJSON {
			err = writeJSON(p.stdout, got)
		} else {
			err = p.writeLines(p.stdout, got.Changes)
		}
		if err != nil {
			return err
		}
		if ack && got.Cursor != "" { // what was written is handled
			if err := c.Ack(cmd.Context(), args[0], got.Cursor, false); err != nil {
				return err
			}
		}
		if !p.asJSON {
			next := "acknowledge them with: athena cdc subscription ack " + args[0] + " " + string(got.Cursor)
			switch {
			case len(got.Changes) == 0:
				next = "no changes"
			case ack:
				next = counted(int64(len(got.Changes)), "change") + ", acknowledged"
			}
			if got.More {
				next += "; there are more"
			}
			fmt.Fprintln(p.stderr, p.paint(p.stderr, dim, next))
		}
		return nil
	})
	cmd.Flags().IntVar(&most, "max", 0, "most changes to write (default the server's)")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait this long for the first one")
	cmd.Flags().BoolVar(&ack, "ack", false, "acknowledge them once they are written")
	return cmd
}

func (p *program) subscriptionAck() *cobra.Command {
	var rewind bool
	cmd := p.subscriptionArg("ack NAME CURSOR", "Go on behind a change: the next pull begins there", "client whose changes it reads", cobra.ExactArgs(2), func(cmd *cobra.Command, c *sdk.CDC, args []string) error {
		if err := c.Ack(cmd.Context(), args[0], cdc.Position(args[1]), rewind); err != nil {
			return err
		}
		return p.say(map[string]string{"name": args[0], "cursor": args[1]}, "%s is at %s", args[0], args[1])
	})
	cmd.Flags().BoolVar(&rewind, "rewind", false, "go back, so that changes come again")
	return cmd
}
