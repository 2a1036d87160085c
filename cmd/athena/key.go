package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "key",
		Aliases: []string{"keys"},
		Short:   "Manage API keys",
		Example: `  athena key create --name reports --right query:read --client shop --expires 720h
  athena key list
  athena key revoke ath_0f3a9c1e5b7d2468`,
	}
	cmd.AddCommand(p.keyList(), p.keyCreate(), p.keyRevoke())
	return cmd
}

func (p *program) keyList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List keys; their secrets are not known to anybody",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			keys, err := api.Admin().Keys(cmd.Context())
			if err != nil {
				return err
			}
			return p.show(keys, func(w io.Writer) {
				lines := make([][]string, len(keys))
				for i, k := range keys {
					lines[i] = []string{k.ID, dash(k.Name), strings.Join(k.Rights, ","), dash(strings.Join(k.Clients, ",")), keyState(k), ago(k.LastUsedAt)}
				}
				columns(w, []string{"ID", "NAME", "RIGHTS", "CLIENTS", "STATE", "LAST USED"}, lines)
			})
		},
	}
}

func keyState(k sdk.Key) string {
	switch {
	case !k.ExpiresAt.IsZero() && k.ExpiresAt.Before(time.Now()):
		return "expired"
	case !k.ExpiresAt.IsZero():
		return "expires " + ago(k.ExpiresAt)
	}
	return "valid"
}

func (p *program) keyCreate() *cobra.Command {
	var k sdk.KeySpec
	var expires string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key; its secret is shown this once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if k.ExpiresAt, err = instant("expires", expires); err != nil {
				return err
			}
			if len(k.Rights) == 0 {
				return usagef("the key has no right; give at least one --right, such as query, deferred or query:read")
			}
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			key, err := api.Admin().CreateKey(cmd.Context(), k)
			if err != nil {
				return err
			}
			return p.show(key, func(w io.Writer) {
				fmt.Fprintln(w, key.Secret)
				fmt.Fprintln(p.stderr, "This key is shown only now; keep it where secrets are kept. Webhooks of its jobs are signed with "+key.WebhookSecret)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&k.Name, "name", "", "what the key is for")
	f.StringSliceVar(&k.Rights, "right", nil, "a right: query, deferred, cdc, pipelines, schema, objects, manage or admin, each optionally with :read; may be repeated")
	f.StringSliceVarP(&k.Clients, "client", "c", nil, "bind the key to this client; may be repeated (default all)")
	f.StringVar(&expires, "expires", "", "when it ends, as 720h or 2026-01-31T15:04:05Z (default never)")
	must(cmd.RegisterFlagCompletionFunc("client", p.completeClients))
	must(cmd.RegisterFlagCompletionFunc("right", cobra.FixedCompletions(
		[]string{"query", "deferred", "cdc", "pipelines", "schema", "objects", "manage", "admin"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (p *program) keyRevoke() *cobra.Command {
	return &cobra.Command{
		Use:               "revoke ID",
		Short:             "Make a key invalid, for good",
		Long:              "Makes a key invalid, for good. ID may be written as ath_ID, or be the whole key.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := keyID(args[0])
			if err != nil {
				return err
			}
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			if err := api.Admin().RevokeKey(cmd.Context(), id); err != nil {
				return err
			}
			return p.say(map[string]string{"revoked": id}, "%s revoked", id)
		},
	}
}

// keyID is the public id in what somebody has of a key: the id, ath_ID, or the
// whole key, whose secret goes no further. The error quotes nothing of it.
func keyID(text string) (string, error) {
	id, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(text), "ath_"), ".")
	if len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", usagef("this is no key's id, which has 16 hex digits; athena key list shows them")
	}
	return id, nil
}
