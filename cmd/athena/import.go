package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog/legacy"
)

func (p *program) clientImport() *cobra.Command {
	var file, table, name string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "import --postgres-clients FILE | --table DSN/TABLE",
		Short: "Carry over the clients of a former, Postgres-shaped catalog",
		Long: `Reads the postgres_clients section of a configuration file, or a table of clients,
stores a definition for each entry, and reports on what was carried over and what was
not. With --dry-run nothing is stored.

The table stands behind the database in the connection string; --table-name names it
where that does not.`,
		Example: `  athena client import --postgres-clients config.yaml --dry-run
  athena client import --table postgres://reader:…@db/catalog/athena_clients`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			entries, err := legacyEntries(cmd, file, table, name)
			if err != nil {
				return err
			}
			return p.importEntries(cmd, entries, dryRun)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "postgres-clients", "", "configuration file with a postgres_clients section")
	f.StringVar(&table, "table", "", "connection string of the former catalog, with the table behind the database")
	f.StringVar(&name, "table-name", "", "the table (default athena_clients)")
	f.BoolVar(&dryRun, "dry-run", false, "report, and store nothing")
	return cmd
}

func legacyEntries(cmd *cobra.Command, file, table, name string) ([]legacy.Entry, error) {
	switch {
	case (file == "") == (table == ""):
		return nil, usagef("give either --postgres-clients FILE or --table DSN/TABLE")
	case file != "":
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, usage{err}
		}
		return legacy.ReadYAML(file, text)
	}
	dsn := table
	if name == "" {
		dsn, name = splitTable(table)
	}
	return legacy.ReadTable(cmd.Context(), dsn, name)
}

// splitTable takes postgres://host/database/table apart. What is no such URL
// is a connection string alone.
func splitTable(dsn string) (rest, table string) {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		return dsn, ""
	}
	path := u.Path
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			u.Path, u.RawPath = path[:i], ""
			return u.String(), path[i+1:]
		}
	}
	return dsn, ""
}

// imported is an entry and what became of it.
type imported struct {
	legacy.Entry
	Verdict string `json:"verdict"` // created, updated, unchanged, refused, failed; ready in a dry run
}

func (p *program) importEntries(cmd *cobra.Command, entries []legacy.Entry, dryRun bool) error {
	api, err := p.api()
	if err != nil {
		return err
	}
	defer api.Close()
	report := make([]imported, len(entries))
	var errs []error
	for i, e := range entries {
		report[i] = imported{e, "ready"}
		switch {
		case e.Client == nil:
			report[i].Verdict = "refused"
			errs = append(errs, athena.Errorf(athena.CodeInvalidRequest, "%s: client %q cannot be carried over", e.Source, e.Name))
		case !dryRun:
			done, err := putOne(cmd.Context(), api.Admin(), e.Client)
			report[i].Verdict = done.Verdict
			if err != nil {
				report[i].Verdict = "failed"
				errs = append(errs, fmt.Errorf("client %q: %w", e.Client.Name, err))
			}
		}
	}
	err = p.show(report, func(w io.Writer) {
		for _, r := range report {
			fmt.Fprintf(w, "%s  %s  (%s)\n", dash(r.Name), r.Verdict, r.Source)
			for _, n := range r.Notes {
				fmt.Fprintf(w, "    %-8s %s: %s\n", n.Kind, n.Field, n.Text)
			}
		}
	})
	return errors.Join(append(errs, err)...)
}
