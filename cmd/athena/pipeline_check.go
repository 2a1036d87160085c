package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// tested is what came of the tests of one file.
type tested struct {
	File  string                 `json:"file"`
	Name  string                 `json:"name,omitempty"`
	Tests []transform.TestResult `json:"tests"`
	// NotRun names the tests of a template whose parameters have no values, and Needs
	// those parameters.
	NotRun []string `json:"not_run,omitempty"`
	Needs  []string `json:"needs,omitempty"`
	// Error says why the definition is not right.
	Error string `json:"error,omitempty"`

	err error
}

func (t tested) failed() (n int) {
	for _, r := range t.Tests {
		if !r.Passed {
			n++
		}
	}
	return n
}

func (p *program) pipelineTest() *cobra.Command {
	var c chosenPipeline
	var verbose bool
	cmd := &cobra.Command{
		Use:   "test -f FILE|DIR|-",
		Short: "Run the tests that stand in definitions, without a server",
		Long: `Takes the rows of each test through the transforms of its definition and holds what
comes out against what is wanted. Nothing is asked of a server or a database.

A template takes its values from --param, and has its defaults for the rest. Where one
has neither, its tests are named as not run, which is no failure. Of a directory all
files are tested, also where one of them is not right.

The exit code is 2 if a definition is not right, else 1 if a test fails.`,
		Example: `  athena pipeline test -f orders.yaml
  athena pipeline test -f orders-of-country.yaml --param country=DE
  athena pipeline test -f pipelines.d --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			values, err := c.params()
			if err != nil {
				return err
			}
			results, err := p.testFiles(c.file, values)
			if err != nil {
				return err
			}
			if len(results) == 1 && results[0].err != nil {
				return results[0].err
			}
			failed, all, bad := 0, 0, 0
			for _, t := range results {
				failed, all = failed+t.failed(), all+len(t.Tests)
				if t.err != nil {
					bad++
				}
			}
			if err := p.show(results, func(w io.Writer) { p.writeTested(w, results, verbose) }); err != nil {
				return err
			}
			switch {
			case bad > 0:
				return usagef("%d of %s could not be tested, and %d of %s failed", bad, counted(int64(len(results)), "file"), failed, counted(int64(all), "test"))
			case failed > 0:
				return outcome{exitFailure, fmt.Errorf("%d of %s failed", failed, counted(int64(all), "test"))}
			}
			return nil
		},
	}
	c.flags(cmd)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the rows that came out of tests that passed, too")
	return cmd
}

func (p *program) testFiles(file string, values map[string]string) ([]tested, error) {
	files, err := pipelineFiles(file)
	if err != nil {
		return nil, err
	}
	results := make([]tested, len(files))
	for i, f := range files {
		results[i] = p.testFile(f, values)
	}
	return results, nil
}

func (p *program) testFile(file string, values map[string]string) tested {
	t := tested{File: file, Tests: []transform.TestResult{}}
	def, err := p.readPipeline(file)
	if err == nil {
		t.Name, t.Needs = def.Name, lacks(def, values)
		if len(t.Needs) > 0 {
			for _, one := range def.Tests {
				t.NotRun = append(t.NotRun, one.Name)
			}
			return t
		}
		if def, err = def.Instantiate(ofTemplate(def, values)); err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
	}
	if err != nil {
		t.Error, t.err = err.Error(), err
		var own *athena.Error
		if errors.As(err, &own) {
			t.Error = placed(file, own.Message)
		}
		return t
	}
	t.Tests = transform.RunTests(def, nil)
	return t
}

// lacks lists the parameters that have neither a value nor a default.
func lacks(def *spec.Pipeline, values map[string]string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(def.Params)) {
		if _, given := values[name]; !given && def.Params[name].Default == nil {
			names = append(names, name)
		}
	}
	return names
}

// ofTemplate keeps the values of parameters that a definition has, so that several
// files can be tested with one set.
func ofTemplate(def *spec.Pipeline, values map[string]string) map[string]string {
	own := map[string]string{}
	for name, v := range values {
		if _, ok := def.Params[name]; ok {
			own[name] = v
		}
	}
	return own
}

func (p *program) writeTested(w io.Writer, results []tested, verbose bool) {
	for _, t := range results {
		switch {
		case t.err != nil:
			for line := range strings.Lines(t.Error) {
				fmt.Fprintf(w, "%s  %s\n", p.paint(w, red, "BAD "), printable(strings.TrimSpace(line)))
			}
		case len(t.NotRun) > 0:
			for _, name := range t.NotRun {
				fmt.Fprintf(w, "%s  %s: %s: needs --param %s\n", p.paint(w, yellow, "skip"), t.File, name, strings.Join(t.Needs, ", --param "))
			}
		case len(t.Tests) == 0:
			fmt.Fprintf(w, "%s  %s\n", p.paint(w, yellow, "none"), t.File+": no tests stand in it")
		}
		for _, r := range t.Tests {
			verdict := p.paint(w, green, "pass")
			if !r.Passed {
				verdict = p.paint(w, red, "FAIL")
			}
			fmt.Fprintf(w, "%s  %s: %s\n", verdict, t.File, r.Name)
			for _, line := range r.Failures {
				fmt.Fprintf(w, "      %s\n", printable(line))
			}
			if !r.Passed || verbose {
				p.writeRowsOut(w, r.Out)
			}
		}
	}
}

func (p *program) writeRowsOut(w io.Writer, rows []json.RawMessage) {
	for _, row := range rows {
		fmt.Fprintf(w, "      %s %s\n", p.paint(w, dim, "came out:"), printable(string(row)))
	}
}
