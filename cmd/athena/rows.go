package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

// The formats in which rows are written.
const (
	formatTable  = "table"
	formatJSON   = "json"
	formatNDJSON = "ndjson"
	formatCSV    = "csv"
)

func formats() []string { return []string{formatTable, formatJSON, formatNDJSON, formatCSV} }

// rowFormat is the format to use: that asked for, else JSON with --json.
func (p *program) rowFormat(flag string) (string, error) {
	switch {
	case flag == "" && p.asJSON:
		return formatJSON, nil
	case flag == "":
		return formatTable, nil
	case !slices.Contains(formats(), flag):
		return "", usagef("--format is %q; it must be one of %s", flag, strings.Join(formats(), ", "))
	}
	return flag, nil
}

// writeRows writes rows as they come, and closes them.
func (p *program) writeRows(rows *sdk.Rows, format string) error {
	defer rows.Close()
	w := bufio.NewWriterSize(p.stdout, 64<<10)
	var err error
	switch format {
	case formatJSON:
		err = rowsJSON(w, rows)
	case formatNDJSON:
		err = rowsNDJSON(w, rows)
	case formatCSV:
		err = rowsCSV(w, rows)
	default:
		err = p.rowsTable(w, rows)
	}
	if flushed := w.Flush(); err == nil {
		err = flushed
	}
	return err
}

func rowsJSON(w *bufio.Writer, rows *sdk.Rows) error {
	w.WriteByte('[')
	for n := 0; rows.Next(); n++ {
		if n > 0 {
			w.WriteByte(',')
		}
		w.WriteString("\n  ")
		w.Write(rows.Row())
	}
	if rows.Err() != nil {
		return rows.Err() // without the bracket: it is not whole
	}
	_, err := w.WriteString("\n]\n")
	return err
}

func rowsNDJSON(w *bufio.Writer, rows *sdk.Rows) error {
	for rows.Next() {
		w.Write(rows.Row())
		if err := w.WriteByte('\n'); err != nil {
			return err
		}
	}
	return rows.Err()
}

// A cell is one value of a row.
type cell struct {
	name  string
	value json.RawMessage
}

// cells takes a row apart, in the order of its columns.
func cells(row json.RawMessage) ([]cell, error) {
	dec := json.NewDecoder(bytes.NewReader(row))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	var list []cell
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		c := cell{}
		c.name, _ = name.(string)
		if err := dec.Decode(&c.value); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// rowsCSV writes RFC 4180 with a heading. NULL is an empty field and an empty
// text is "", so that the two can be told apart.
func rowsCSV(w *bufio.Writer, rows *sdk.Rows) error {
	headed := false
	for rows.Next() {
		row, err := cells(rows.Row())
		if err != nil {
			return err
		}
		if !headed {
			names := make([]string, len(row))
			for i, c := range row {
				names[i] = csvField(c.name)
			}
			headed = true
			w.WriteString(strings.Join(names, ",") + "\r\n")
		}
		for i, c := range row {
			if i > 0 {
				w.WriteByte(',')
			}
			w.WriteString(csvValue(c.value))
		}
		if _, err := w.WriteString("\r\n"); err != nil {
			return err
		}
	}
	if cols := rows.Meta().Columns; !headed && len(cols) > 0 && rows.Err() == nil {
		names := make([]string, len(cols))
		for i, c := range cols {
			names[i] = csvField(c.Name)
		}
		w.WriteString(strings.Join(names, ",") + "\r\n")
	}
	return rows.Err()
}

func csvValue(v json.RawMessage) string {
	if string(v) == "null" {
		return ""
	}
	return csvField(plain(v))
}

func csvField(s string) string {
	if s != "" && !strings.ContainsAny(s, ",\"\r\n") && strings.TrimSpace(s) == s {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// plain is a value as text: a string without its quotes, else its JSON.
func plain(v json.RawMessage) string {
	var s string
	if len(v) > 0 && v[0] == '"' && json.Unmarshal(v, &s) == nil {
		return s
	}
	return string(v)
}

// measured is how many rows the widths of a table are taken from. Later cells
// that are wider stick out.
const measured = 500

// widest is the most characters of a cell in a table.
const widest = 60

// rowsTable writes a table for people.
func (p *program) rowsTable(w *bufio.Writer, rows *sdk.Rows) error {
	t := &table{}
	var n int64
	for ; rows.Next(); n++ {
		row, err := cells(rows.Row())
		if err != nil {
			return err
		}
		t.add(w, row)
	}
	t.flush(w)
	if rows.Err() != nil {
		return rows.Err()
	}
	meta := rows.Meta()
	if t.names == nil {
		for _, c := range meta.Columns {
			t.names, t.right = append(t.names, c.Name), append(t.right, false)
		}
		t.flush(w)
	}
	if t.names == nil && meta.RowsAffected != nil {
		_, err := fmt.Fprintln(w, affected(*meta.RowsAffected))
		return err
	}
	note := counted(n, "row")
	if meta.Truncated {
		note += ", and there were more"
	}
	_, err := fmt.Fprintln(w, p.paint(p.stdout, dim, "("+note+")"))
	return err
}

// affected says how many rows a statement changed, as its engine counts.
func affected(n int64) string {
	if n < 0 {
		return "done; the engine counts no rows"
	}
	return counted(n, "row") + " affected"
}

func counted(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// table gathers rows until it knows how wide its columns are, and then writes
// each as it comes.
type table struct {
	names  []string
	widths []int
	right  []bool
	held   [][]string
	open   bool // the heading is written
}

func (t *table) add(w io.Writer, row []cell) {
	if t.names == nil {
		t.names, t.right = make([]string, len(row)), make([]bool, len(row))
		for i, c := range row {
			t.names[i], t.right[i] = c.name, true
		}
	}
	texts := make([]string, len(row))
	for i, c := range row {
		texts[i] = shown(c.value)
		if i < len(t.right) && !t.open && string(c.value) != "null" && !number(c.value) {
			t.right[i] = false
		}
	}
	if t.open {
		t.line(w, texts)
		return
	}
	if t.held = append(t.held, texts); len(t.held) == measured {
		t.flush(w)
	}
}

// flush writes what is held, below the heading.
func (t *table) flush(w io.Writer) {
	if t.open || t.names == nil {
		return
	}
	t.open = true
	t.widths = make([]int, len(t.names))
	for i, name := range t.names {
		t.widths[i] = utf8.RuneCountInString(name)
	}
	for _, row := range t.held {
		for i := range min(len(row), len(t.widths)) {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	t.line(w, t.names)
	rule := make([]string, len(t.widths))
	for i, n := range t.widths {
		rule[i] = strings.Repeat("-", n)
	}
	fmt.Fprintln(w, strings.Join(rule, "  "))
	for _, row := range t.held {
		t.line(w, row)
	}
	t.held = nil
}

func (t *table) line(w io.Writer, texts []string) {
	var b strings.Builder
	for i, s := range texts {
		if i >= len(t.widths) {
			break
		}
		if i > 0 {
			b.WriteString("  ")
		}
		pad := strings.Repeat(" ", max(0, t.widths[i]-utf8.RuneCountInString(s)))
		if t.right[i] {
			b.WriteString(pad + s)
		} else {
			b.WriteString(s + pad)
		}
	}
	fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
}

// shown is a value as a cell: one line, no control characters, not too wide.
func shown(v json.RawMessage) string {
	if string(v) == "null" {
		return "NULL"
	}
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '·' // a terminal must not be steered by data
		}
		return r
	}, plain(v))
	if r := []rune(s); len(r) > widest {
		return string(r[:widest-1]) + "…"
	}
	return s
}

func number(v json.RawMessage) bool {
	return len(v) > 0 && (v[0] == '-' || v[0] >= '0' && v[0] <= '9')
}
