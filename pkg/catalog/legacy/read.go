package legacy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// maxRows bounds a table of clients.
const maxRows = 100_000

// ReadYAML reads the postgres_clients section of a configuration file. It is a
// list of entries, or a map from name to entry; an entry is a map of fields, or
// nothing but the connection string. Other sections are passed over. Errors
// name the file and, where it is known, the line.
func ReadYAML(file string, text []byte) ([]Entry, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "%s is not valid YAML: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	section := child(&doc, "postgres_clients")
	if section == nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "%s has no section postgres_clients", file)
	}
	var entries []Entry
	c := converter{taken: map[string]string{}}
	add := func(name string, n *yaml.Node) {
		source := fmt.Sprintf("%s:%d", file, n.Line)
		var fields map[string]any
		if n = follow(n); n.Kind == yaml.ScalarNode {
			fields = map[string]any{"uri": n.Value}
		} else if err := n.Decode(&fields); err != nil {
			entries = append(entries, Entry{Source: source, Name: name, Notes: []Note{{Refused, "", "it is neither a connection string nor a map of fields"}}})
			return
		}
		entries = append(entries, c.convert(source, name, fields))
	}
	switch section.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(section.Content); i += 2 {
			add(section.Content[i].Value, section.Content[i+1])
		}
	case yaml.SequenceNode:
		for _, n := range section.Content {
			if name, value, ok := single(follow(n)); ok {
				add(name, value)
			} else {
				add("", n)
			}
		}
	default:
		if section.Tag != "!!null" {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "%s:%d: postgres_clients must be a list or a map", file, section.Line)
		}
	}
	return entries, nil
}

// child returns the value of a key of the document's map, or nil.
func child(doc *yaml.Node, key string) *yaml.Node {
	if len(doc.Content) == 0 {
		return nil
	}
	body := follow(doc.Content[0])
	if body.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(body.Content); i += 2 {
		if body.Content[i].Value == key {
			return follow(body.Content[i+1])
		}
	}
	return nil
}

func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// single recognizes the list item "- name: connection string", and "- name:"
// with the fields below it.
func single(n *yaml.Node) (name string, value *yaml.Node, ok bool) {
	if n.Kind != yaml.MappingNode || len(n.Content) != 2 {
		return "", nil, false
	}
	name = n.Content[0].Value
	for _, known := range [][]string{nameKeys, uriKeys, envKeys, activeKeys, frozenKeys, metadataKeys, maxConnsKeys, describing} {
		if slices.Contains(known, name) {
			return "", nil, false
		}
	}
	return name, n.Content[1], true
}

// ReadTable reads a table of clients; table may be qualified with its schema,
// and is athena_clients if it is empty. Columns that are missing count as
// empty. The connection is read-only. Errors do not repeat the DSN.
func ReadTable(ctx context.Context, dsn, table string) ([]Entry, error) {
	if table == "" {
		table = "athena_clients"
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the connection string of the table %s cannot be read; it looks like postgres://user:password@host/database", table)
	}
	cfg.RuntimeParams["default_transaction_read_only"] = "on"
	cfg.RuntimeParams["application_name"] = "athena"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, athena.Wrap(athena.CodeBackendUnavailable, err, "the database with the table %s cannot be reached", table)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	name := pgx.Identifier(strings.Split(table, ".")).Sanitize()
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT to_jsonb(t) FROM %s t ORDER BY to_jsonb(t)->>'client_name' LIMIT %d", name, maxRows+1))
	if err != nil {
		return nil, tableError(table, err)
	}
	c := converter{taken: map[string]string{}}
	var entries []Entry
	for rows.Next() {
		var fields map[string]any
		if err := rows.Scan(&fields); err != nil {
			rows.Close()
			return nil, tableError(table, err)
		}
		entries = append(entries, c.convert(fmt.Sprintf("%s, row %d", table, len(entries)+1), "", fields))
	}
	if err := rows.Err(); err != nil {
		return nil, tableError(table, err)
	}
	if len(entries) > maxRows {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the table %s has more than %d rows", table, maxRows)
	}
	return entries, nil
}

func tableError(table string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return athena.Wrap(athena.CodeQueryFailed, err, "the table %s cannot be read: %s", table, pg.Message).With("sqlstate", pg.Code)
	}
	return athena.Wrap(athena.CodeBackendUnavailable, err, "the table %s cannot be read", table)
}
