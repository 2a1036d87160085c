package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// run is the program. Errors have been told on stderr when it returns; the
// returned one is for the exit code.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) error {
	p := &program{environ: environ, stdin: stdin, stdout: stdout, stderr: stderr}
	root := p.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && !p.started {
		err = usage{err} // cobra did not get as far as a command
	}
	if err != nil {
		p.tell(err)
		err = failed{exitOf(err), err}
	}
	return err
}

// program is what all commands share.
type program struct {
	environ        []string // in the form of os.Environ
	stdin          io.Reader
	stdout, stderr io.Writer

	asJSON  bool
	server  string // --url
	keyFile string
	profile string
	started bool // a command has begun
}

// getenv reads a variable of the environment, of which the last one counts.
func (p *program) getenv(name string) string {
	for _, kv := range slices.Backward(p.environ) {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "athena",
		Short: "Deferred queries over the databases of a company, by name",
		Long: `Athena gives every database a logical client name, and runs queries through it:
now, or later without losing one or running a write twice.

Start with "athena demo" to see it work, or with "athena dev" to have it here.`,
		Example: `  athena demo
  athena dev --data ./athena-dev
  athena query --client shop 'select count(*) from orders'
  athena query --client shop --defer --wait 10s 'select * from orders'`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          known,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	flags := root.PersistentFlags()
	flags.BoolVar(&p.asJSON, "json", false, "write JSON, for programs")
	flags.StringVar(&p.server, "url", "", "the server's URL (ATHENA_URL)")
	flags.StringVar(&p.keyFile, "key-file", "", "file that holds the API key (ATHENA_KEY)")
	flags.StringVar(&p.profile, "profile", "", "profile in profiles.yaml to use (ATHENA_PROFILE)")
	must(root.RegisterFlagCompletionFunc("profile", p.completeProfiles))

	root.AddCommand(
		p.queryCommand(), p.deferredCommand(), p.cdcCommand(), p.pipelineCommand(), p.objectCommand(), p.schemaCommand(),
		p.clientCommand(), p.keyCommand(), p.auditCommand(), p.deadCommand(),
		p.serveCommand(), p.workerCommand(), p.devCommand(), p.demoCommand(), p.doctorCommand(), p.versionCommand(),
		&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitHelp()},
		&cobra.Command{Use: "settings", Short: "All settings of serve and worker", Long: settingsHelp()},
		&cobra.Command{Use: "environment", Short: "Environment variables and the profile file", Long: environmentHelp},
	)
	root.InitDefaultCompletionCmd(root.Name())
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" {
			strict(cmd)
		}
	}
	p.mark(root)
	return root
}

// strict has help refuse what there is no help on.
func strict(help *cobra.Command) {
	help.Long = "Shows the help of a command, or of a topic."
	help.Example = "  athena help query\n  athena help exit-codes"
	help.Run = nil
	help.RunE = func(cmd *cobra.Command, args []string) error {
		found, rest, err := cmd.Root().Find(args)
		if err == nil {
			err = known(found, rest)
		}
		if err != nil {
			return usage{err}
		}
		found.InitDefaultHelpFlag()
		return found.Help()
	}
}

// known refuses an argument where a subcommand should stand, and names the
// nearest ones.
func known(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return errors.New(text)
}

// mark has each command say that it has begun, and each group of commands show
// its help where none of them is named.
func (p *program) mark(cmd *cobra.Command) {
	if do := cmd.RunE; do != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			p.started = true
			return do(cmd, args)
		}
	}
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = known
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, sub := range cmd.Commands() {
		p.mark(sub)
	}
}

// must is for the wiring of flags, where an error is a slip in this program.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// tell writes an error to stderr, or each of several.
func (p *program) tell(err error) {
	for _, e := range each(err) {
		if p.asJSON {
			p.tellJSON(e)
		} else {
			p.tellPeople(e)
		}
	}
	if !p.asJSON && errors.As(err, new(usage)) {
		fmt.Fprintln(p.stderr, `Run it with --help to see how it is used.`)
	}
}

// each takes joined errors apart.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func (p *program) tellPeople(err error) {
	var own *athena.Error
	var out outcome
	text := err.Error()
	switch {
	case errors.As(err, &own):
		text = spoken(own.Message)
		// A conflict is the server's own sentence about the job and its state.
		if state := own.Details["state"]; state != nil && errors.As(err, &out) && own.Code != athena.CodeConflict && !strings.Contains(text, "ended as") {
			text = fmt.Sprintf("the job ended as %v: %s", state, text)
		}
		text += " (" + strings.Join(notes(own), ", ") + ")"
	case errors.As(err, &out):
	case errors.Is(err, context.Canceled):
		text = "interrupted"
	}
	fmt.Fprintln(p.stderr, p.paint(p.stderr, red, "athena:"), text)
}

// notes are the facts about an error that its message leaves out.
func notes(e *athena.Error) []string {
	list := []string{string(e.Code)}
	if state := e.Details["sqlstate"]; state != nil {
		list = append(list, fmt.Sprintf("SQLSTATE %v", state))
	}
	if id := sdk.RequestID(e); id != "" {
		list = append(list, "request "+id)
	}
	return list
}

func (p *program) tellJSON(err error) {
	e := athena.AsError(err)
	message := e.Message
	if !errors.As(err, new(*athena.Error)) && !errors.Is(err, context.Canceled) {
		message = err.Error() // of this program: there is no log to look it up in
	}
	code := string(e.Code)
	if errors.As(err, new(usage)) {
		code = "usage"
	}
	body, encodeErr := json.Marshal(map[string]any{
		"status": "error", "code": code, "message": message, "details": e.Details, "exit_code": int(exitOf(err)),
	})
	if encodeErr != nil {
		fmt.Fprintln(p.stderr, message)
		return
	}
	fmt.Fprintf(p.stderr, "%s\n", body)
}
