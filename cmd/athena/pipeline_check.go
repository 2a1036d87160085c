package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/transform"
)

// tested is what came of the tests of one file.
type tested struct {
	File  string                 `json:"file"`
	Name  string                 `json:"name,omitempty"`
	Tests []transform.TestResult `json:"tests"`
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
comes out against what is wanted. Nothing is asked of a server or a database. The exit
code is 1 if a test fails, and 2 if a definition is not right.`,
		Example: `  athena pipeline test -f orders.yaml
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
			failed, all := 0, 0
			for _, t := range results {
				failed, all = failed+t.failed(), all+len(t.Tests)
			}
			if err := p.show(results, func(w io.Writer) { p.writeTested(w, results, verbose) }); err != nil {
				return err
			}
			if failed > 0 {
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
		def, err := p.readPipeline(f)
		if err != nil {
			return nil, err
		}
		if def, err = def.Instantiate(ofTemplate(def, values)); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		results[i] = tested{f, def.Name, transform.RunTests(def, nil)}
	}
	return results, nil
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
		if len(t.Tests) == 0 {
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
