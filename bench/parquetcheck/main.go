// Command parquetcheck reads the parquet files that Athena writes with pyarrow and
// DuckDB, and files that pyarrow writes with Athena.
//
// The rows come from a PostgreSQL server that it starts. What they must be is told
// by that server, in its own text and by its own sums, and not by Athena.
//
// Pyarrow and DuckDB are installed from the Python package index into a virtual
// environment in the user's cache directory. Without them the command fails.
package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/record"
)

// packages are what reads the files.
var packages = []string{"pyarrow==26.0.1", "duckdb==2.0.1"}

//go:embed check.py
var checks string

//go:embed rows.sql
var rowsSQL string

//go:embed sums.sql
var sumsSQL string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "parquetcheck:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	python, err := install(ctx)
	if err != nil {
		return fmt.Errorf("pyarrow and DuckDB cannot be had: %w", err)
	}
	dir, err := os.MkdirTemp("", "parquetcheck")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := written(ctx, dir); err != nil {
		return err
	}
	for _, part := range []string{"values", "sums", "foreign"} {
		text, err := check(ctx, python, dir, part)
		if err != nil {
			return err
		}
		fmt.Fprint(out, text)
	}
	rows := 0
	for _, file := range [][2]string{{"plain", "foreign"}, {"foreign", "foreign"}, {"old", "old"}} {
		n, err := foreign(dir, file[0]+".parquet", file[1]+".ndjson")
		if err != nil {
			return fmt.Errorf("pyarrow's %s.parquet: %w", file[0], err)
		}
		rows += n
	}
	fmt.Fprintf(out, "foreign: %d rows of three files of pyarrow's are what it wrote: lists, structs and maps, dictionaries, nanoseconds, int96, unsigned numbers\n", rows)
	return nil
}

// install returns the Python of an environment that has the packages.
func install(ctx context.Context) (python string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "athena", "parquetcheck")
	python = filepath.Join(dir, "bin", "python")
	if _, err := os.Stat(python); err != nil {
		if err := command(ctx, "python3", "-m", "venv", dir); err != nil {
			return "", err
		}
	}
	return python, command(ctx, python, append([]string{"-m", "pip", "install", "-q", "--disable-pip-version-check"}, packages...)...)
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), args[0], err, out)
	}
	return nil
}

func check(ctx context.Context, python, dir, part string) (string, error) {
	cmd := exec.CommandContext(ctx, python, "-c", checks, part, dir)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", part, err, out, errs.Bytes())
	}
	return string(out), nil
}

// written writes the rows of a table to dir: as Athena reads and writes them, as
// PostgreSQL's own text, and its sums.
func written(ctx context.Context, dir string) error {
	server, err := localpg.Start(ctx, localpg.Config{Settings: map[string]string{"fsync": "off", "timezone": "UTC"}})
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop(context.WithoutCancel(ctx), localpg.Immediate) }()
	dsn := server.DSN("postgres")
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range []string{"set timezone to 'UTC'", "set extra_float_digits to 1", rowsSQL} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if err := spool(dir, "rows.csv", func(w io.Writer) error {
		_, err := conn.PgConn().CopyTo(ctx, w, `copy (select * from things order by id) to stdout (format csv, header, null '\N', force_quote *)`)
		return err
	}); err != nil {
		return err
	}
	if err := spool(dir, "sums.csv", func(w io.Writer) error {
		_, err := conn.PgConn().CopyTo(ctx, w, "copy ("+sumsSQL+") to stdout (format csv)")
		return err
	}); err != nil {
		return err
	}
	return spool(dir, "rows.parquet", func(w io.Writer) error { return table(ctx, dsn, w) })
}

func spool(dir, name string, fn func(io.Writer) error) error {
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	b := bufio.NewWriter(f)
	if err = fn(b); err == nil {
		err = b.Flush()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func table(ctx context.Context, dsn string, w io.Writer) error {
	backend, err := postgres.Open(ctx, athena.PostgresConn{DSN: athena.NewSecret(dsn)})
	if err != nil {
		return err
	}
	defer func() { _ = backend.Close(context.WithoutCancel(ctx)) }()
	name, err := driver.ParseTableName("public.things")
	if err != nil {
		return err
	}
	read := driver.TableRead{Table: name}
	shape, err := backend.DescribeTable(ctx, name)
	if err != nil {
		return err
	}
	parts, err := backend.SplitTable(ctx, read, 1<<40)
	if err != nil {
		return err
	}
	file, err := format.New(format.Parquet, "", w, shape.Schema, nil)
	if err != nil {
		return err
	}
	for _, p := range parts {
		err := backend.ReadTable(ctx, read, p, driver.BatchSize{}, func(b *record.Batch) error {
			rejected, err := file.Write(b, nil)
			if err == nil && len(rejected) > 0 {
				err = fmt.Errorf("column %s: %s", rejected[0].Column, rejected[0].Reason)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return file.Close()
}

// foreign reads a file that pyarrow wrote, and compares its rows with what check.py
// says that they are.
func foreign(dir, file, rowsOf string) (rows int, err error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join(dir, rowsOf))
	if err != nil {
		return 0, err
	}
	want := strings.Split(strings.TrimSpace(string(text)), "\n")
	r, err := format.OpenParquet(bytes.NewReader(data), int64(len(data)), format.ReadOptions{})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for {
		b, err := r.Next(driver.BatchSize{})
		if err == io.EOF {
			break
		}
		if err != nil {
			return rows, err
		}
		if len(b.Rejected) > 0 {
			return rows, fmt.Errorf("row %d: %s: %s", b.Rejected[0].Line, b.Rejected[0].Column, b.Rejected[0].Reason)
		}
		for i := range b.Rows() {
			if rows >= len(want) {
				return rows, fmt.Errorf("it has more than %d rows", len(want))
			}
			if err := same(want[rows], string(b.AppendJSON(nil, i))); err != nil {
				return rows, err
			}
			rows++
		}
	}
	if rows != len(want) {
		return rows, fmt.Errorf("it has %d rows, not %d", rows, len(want))
	}
	return rows, nil
}

func same(want, got string) error {
	var values [2]map[string]any
	for i, text := range []string{want, got} {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&values[i]); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
	}
	for name, w := range values[0] {
		if g := values[1][name]; !reflect.DeepEqual(w, g) {
			return fmt.Errorf("column %s is %v, not %v", name, g, w)
		}
	}
	if len(values[0]) != len(values[1]) {
		return fmt.Errorf("%s has other columns than %s", got, want)
	}
	return nil
}
