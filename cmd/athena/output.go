package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

// color is an SGR code of a terminal.
type color string

const (
	red    color = "31"
	green  color = "32"
	yellow color = "33"
	blue   color = "34"
	dim    color = "2"
	bold   color = "1"
)

// terminal reports whether w is one, so that people read it.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// paint colours text on a terminal that has colours, unless NO_COLOR is set.
func (p *program) paint(w io.Writer, c color, text string) string {
	if !terminal(w) || p.getenv("NO_COLOR") != "" || p.getenv("TERM") == "dumb" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

func stateColor(s sdk.State) color {
	switch s {
	case sdk.Succeeded:
		return green
	case sdk.Failed, sdk.TimedOut, sdk.Expired, sdk.Indeterminate:
		return red
	case sdk.Running, sdk.Spooling:
		return blue
	case sdk.Held, sdk.RetryWait, sdk.Cancelling, sdk.Cancelled:
		return yellow
	}
	return dim
}

// show writes v as indented JSON with --json, else what human writes.
func (p *program) show(v any, human func(w io.Writer)) error {
	if p.asJSON {
		return writeJSON(p.stdout, v)
	}
	human(p.stdout)
	return nil
}

// say is show for a sentence.
func (p *program) say(v any, format string, args ...any) error {
	return p.show(v, func(w io.Writer) { fmt.Fprintf(w, format+"\n", args...) })
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// writeLine writes v as one line of JSON.
func writeLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// columns writes lines of cells below a heading.
func columns(w io.Writer, heading []string, lines [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(heading, "\t"))
	for _, line := range lines {
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	t.Flush()
}

// ago writes how long ago t was, in one unit.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	switch {
	case d < 0:
		return "in " + span(-d)
	case d < time.Second:
		return "just now"
	}
	return span(d) + " ago"
}

func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// invocation is how this program was called, for lines to be copied.
func invocation() string {
	name := os.Args[0]
	if strings.Contains(filepath.ToSlash(name), "/go-build") {
		return "go run ./cmd/athena"
	}
	return name
}

// clip shortens a text to one line of at most n characters.
func clip(s string, n int) string {
	r := []rune(strings.Join(strings.Fields(s), " "))
	if len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return string(r)
}

// clipped is how much of a cell is shown: n characters on a terminal. Whoever reads
// it elsewhere has room, and may look for the end.
func clipped(w io.Writer, n int) int {
	if terminal(w) {
		return n
	}
	return math.MaxInt
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
