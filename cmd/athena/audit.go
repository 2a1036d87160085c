package main

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) auditCommand() *cobra.Command {
	var f sdk.AuditFilter
	var since string
	var limit int
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "See who changed what, newest first",
		Example: `  athena audit --client shop
  athena audit --since 24h --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if f.Actor != "" {
				if f.Actor, err = keyID(f.Actor); err != nil {
					return err
				}
			}
			if f.Since, err = past("since", since); err != nil {
				return err
			}
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			list := []sdk.AuditEvent{}
			for e, err := range api.Admin().Audit(cmd.Context(), f) {
				if err != nil {
					return err
				}
				if list = append(list, e); len(list) == limit {
					break
				}
			}
			return p.show(list, func(w io.Writer) {
				lines := make([][]string, len(list))
				for i, e := range list {
					lines[i] = []string{e.At.Local().Format(time.DateTime), e.Action, dash(e.Client), dash(e.Target), e.Actor, dash(e.ActorName)}
				}
				columns(w, []string{"AT", "ACTION", "CLIENT", "TARGET", "KEY", "KEY NAME"}, lines)
			})
		},
	}
	p.clientFlag(cmd, &f.Client, "only what concerns this client")
	cmd.Flags().StringVar(&f.Actor, "actor", "", "only changes by this key")
	cmd.Flags().StringVar(&since, "since", "", "only changes since then, as 24h or 2026-01-31T15:04:05Z")
	cmd.Flags().IntVar(&limit, "limit", 100, "most changes to list")
	return cmd
}

// past reads a point in time, or a span before now; zero if it is empty.
func past(flag, text string) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d.Abs()), nil
	}
	t, err := instant(flag, text)
	if t == nil {
		return time.Time{}, err
	}
	return *t, err
}
