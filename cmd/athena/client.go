package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func (p *program) clientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "client",
		Aliases: []string{"clients"},
		Short:   "Manage client definitions",
		Example: `  athena client apply -f shop.yaml
  athena client list
  athena client check shop
  athena client freeze shop`,
	}
	cmd.AddCommand(p.clientList(), p.clientGet(), p.clientApply(), p.clientDelete(), p.clientCheck(), p.clientImport(),
		p.lifecycleCommand("freeze", athena.Frozen, "Hold a client's work; what is queued waits"),
		p.lifecycleCommand("thaw", athena.Active, "Let a client work again"),
		p.lifecycleCommand("deactivate", athena.Inactive, "Keep a client's definition and refuse its work"))
	return cmd
}

func (p *program) clientList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List clients",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			list, err := api.Admin().Clients(cmd.Context())
			if err != nil {
				return err
			}
			return p.show(list, func(w io.Writer) {
				lines := make([][]string, len(list))
				for i, c := range list {
					lines[i] = []string{c.Name, string(c.Engine()), string(c.Lifecycle), fmt.Sprint(c.Revision), c.Capabilities.String()}
				}
				columns(w, []string{"NAME", "ENGINE", "LIFECYCLE", "REVISION", "CAPABILITIES"}, lines)
			})
		},
	}
}

func (p *program) clientGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get NAME",
		Short:             "Show a client's definition, with its secrets redacted",
		Long:              "Writes a definition as YAML that client apply reads: a secret left as *** stays as it is.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			c, err := api.Admin().Client(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if p.asJSON {
				return writeJSON(p.stdout, c)
			}
			text, err := asYAML(c)
			if err != nil {
				return err
			}
			_, err = p.stdout.Write(text)
			return err
		},
	}
}

// asYAML writes v as YAML with the names and order of its JSON.
func asYAML(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil { // JSON is YAML
		return nil, err
	}
	block(&doc)
	return yaml.Marshal(&doc)
}

// block gives a document the form that people write.
func block(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	for _, c := range n.Content {
		block(c)
	}
}

// An applied definition is what became of it.
type applied struct {
	Client   string `json:"client_name"`
	Verdict  string `json:"verdict"` // created, updated or unchanged
	Revision uint64 `json:"revision"`
}

func (p *program) clientApply() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Store the client definitions of a file or directory",
		Long: `Makes the server hold the definitions of a YAML or JSON file, of the files of a
directory, or of standard input. Several YAML documents may stand in one file. No
client is ever deleted.`,
		Example: `  athena client apply -f clients.d
  athena client get shop | sed s/active/frozen/ | athena client apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			defs, err := p.definitions(file)
			if err != nil {
				return err
			}
			return p.put(cmd.Context(), defs)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file or directory of definitions, or - for standard input")
	return cmd
}

func (p *program) definitions(file string) ([]*athena.Client, error) {
	switch file {
	case "":
		return nil, usagef("no definitions are named; give -f FILE, a directory, or -")
	case "-":
		text, err := io.ReadAll(io.LimitReader(p.stdin, maxStatement))
		if err != nil {
			return nil, err
		}
		return catalog.Load("standard input", text)
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, usage{err}
	}
	if info.IsDir() {
		return catalog.LoadDir(file)
	}
	return catalog.LoadFile(file)
}

// put stores definitions one after the other and reports on each, also of
// those before one that failed.
func (p *program) put(ctx context.Context, defs []*athena.Client) error {
	if len(defs) == 0 {
		return usagef("there are no definitions in it")
	}
	api, err := p.api()
	if err != nil {
		return err
	}
	defer api.Close()
	reports := []applied{}
	for _, def := range defs {
		var report applied
		if report, err = putOne(ctx, api.Admin(), def); err != nil {
			err = fmt.Errorf("client %q: %w", def.Name, err)
			break
		}
		reports = append(reports, report)
	}
	return errors.Join(p.show(reports, func(w io.Writer) {
		for _, r := range reports {
			fmt.Fprintf(w, "%s  %s at revision %d\n", r.Client, r.Verdict, r.Revision)
		}
	}), err)
}

// putOne stores a definition over the revision that it has seen.
func putOne(ctx context.Context, admin *sdk.Admin, def *athena.Client) (applied, error) {
	report, expected := applied{Client: def.Name, Verdict: "created"}, sdk.Absent
	old, err := admin.Client(ctx, def.Name)
	switch {
	case err == nil:
		report.Verdict, expected = "updated", int64(old.Revision)
	case athena.CodeOf(err) != athena.CodeClientNotFound:
		return report, err
	}
	stored, err := admin.PutClient(ctx, def, expected)
	if err != nil {
		return report, err
	}
	if report.Revision = stored.Revision; expected == int64(stored.Revision) {
		report.Verdict = "unchanged"
	}
	return report, nil
}

func (p *program) clientDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Remove a client's definition",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			if err := api.Admin().DeleteClient(cmd.Context(), args[0]); err != nil {
				return err
			}
			return p.say(map[string]string{"deleted": args[0]}, "%s deleted", args[0])
		},
	}
}

func (p *program) lifecycleCommand(name string, to athena.Lifecycle, short string) *cobra.Command {
	return &cobra.Command{
		Use:               name + " NAME",
		Short:             short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			c, err := api.Admin().SetLifecycle(cmd.Context(), args[0], to)
			if err != nil {
				return err
			}
			return p.say(c, "%s is %s", c.Name, c.Lifecycle)
		},
	}
}

func (p *program) clientCheck() *cobra.Command {
	return &cobra.Command{
		Use:               "check NAME",
		Short:             "Dial a client's backend and compare what it supports with what is granted",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := p.api()
			if err != nil {
				return err
			}
			defer api.Close()
			report, err := api.Admin().CheckClient(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return errors.Join(p.showCheck(report), checked(report))
		},
	}
}

func (p *program) showCheck(c *sdk.ClientCheck) error {
	return p.show(c, func(w io.Writer) {
		fact := func(name, value string) { fmt.Fprintf(w, "%-10s %s\n", name, value) }
		fact("client", fmt.Sprintf("%s (%s, %s, revision %d)", c.Client, c.Engine, c.Lifecycle, c.Revision))
		if c.Reachable {
			fact("reachable", fmt.Sprintf("%s: opened in %.1f ms, answers in %.1f ms", p.paint(w, green, "yes"), c.OpenMS, c.PingMS))
		} else {
			fact("reachable", p.paint(w, red, "no"))
		}
		if c.Identity != nil {
			fact("backend", c.Identity.Product+" "+c.Identity.Version)
			for _, name := range slices.Sorted(maps.Keys(c.Identity.Facts)) {
				fact("", name+": "+c.Identity.Facts[name])
			}
		}
		fact("granted", dash(strings.Join(c.Granted, ", ")))
		fact("supported", dash(strings.Join(c.Supported, ", ")))
		for _, problem := range c.Problems {
			fact("problem", p.paint(w, red, problem))
		}
	})
}

// checked is the exit code that fits what was found.
func checked(c *sdk.ClientCheck) error {
	switch {
	case len(c.Problems) == 0:
		return nil
	case !c.Reachable:
		return athena.Errorf(athena.CodeBackendUnavailable, "%s", c.Problems[0])
	}
	return outcome{exitFailure, errors.New(c.Problems[0])}
}
