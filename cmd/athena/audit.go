package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
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
		Long: `Lists changes to clients, keys and dead letters. A change that was refused or failed
has the code as its outcome; with --json it has two entries, of which the first was
written before it was tried.`,
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
				if len(list) == 0 {
					fmt.Fprintln(w, "no entries")
					return
				}
				columns(w, []string{"AT", "ACTION", "CLIENT", "TARGET", "DETAIL", "OUTCOME", "KEY", "KEY NAME"}, auditLines(list))
			})
		},
	}
	p.clientFlag(cmd, &f.Client, "only what concerns this client")
	cmd.Flags().StringVar(&f.Actor, "actor", "", "only changes by this key")
	cmd.Flags().StringVar(&since, "since", "", "only changes since then, as 24h or 2026-01-31T15:04:05Z")
	cmd.Flags().IntVar(&limit, "limit", 100, "most changes to list")
	return cmd
}

// auditLines writes a line for each change of a list that has the newest first.
// An entry that says that a change failed stands for the one before it, too.
func auditLines(list []sdk.AuditEvent) (lines [][]string) {
	type change struct{ request, action, client, target string }
	failed := map[change]bool{}
	for _, e := range list {
		var d struct {
			Before, After athena.Lifecycle
			Fields        []string
			Failed        athena.Code
		}
		_ = json.Unmarshal(e.Details, &d) // there may be none
		outcome := "done"
		if id := (change{e.RequestID, e.Action, e.Client, e.Target}); d.Failed != "" {
			outcome, failed[id] = "failed: "+string(d.Failed), e.RequestID != ""
		} else if failed[id] {
			delete(failed, id)
			continue
		}
		detail := strings.Join(d.Fields, ", ")
		if d.After != d.Before && d.After != "" {
			detail = strings.TrimPrefix(string(d.Before)+" -> "+string(d.After), " -> ")
		}
		lines = append(lines, []string{e.At.Local().Format(time.DateTime), e.Action, dash(e.Client), dash(e.Target),
			dash(clip(detail, 40)), outcome, e.Actor, dash(e.ActorName)})
	}
	return lines
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
