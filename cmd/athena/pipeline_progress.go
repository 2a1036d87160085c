package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/athena-pipelines/athena/pkg/sdk"
)

// viewer is how a run is shown here: on a terminal as a bar, else as lines of JSON.
func (p *program) viewer(info *sdk.RunInfo) viewer {
	f, ok := p.stdout.(*os.File)
	if p.asJSON || !ok || !terminal(p.stdout) || p.getenv("TERM") == "dumb" {
		return jsonViewer{p.stdout}
	}
	return &bar{
		w: f, info: info, plain: p.getenv("NO_COLOR") != "", now: time.Now,
		width: func() int {
			if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
				return n
			}
			return 80
		},
	}
}

// jsonViewer writes each thing that is told as a line of JSON.
type jsonViewer struct{ w io.Writer }

func (v jsonViewer) tell(e sdk.RunEvent) error {
	line := map[string]any{}
	switch {
	case e.Run != nil && e.Run.State.Over():
		line["event"], line["run"] = "end", e.Run
	case e.Run != nil:
		line["event"], line["run"] = "state", e.Run
	case e.Step != nil:
		line["event"], line["step"] = "step", e.Step
	case e.Progress != nil:
		line["event"], line["progress"] = "progress", e.Progress
	}
	return writeLine(v.w, line)
}

func (jsonViewer) tick() {}
func (jsonViewer) done() {}

// A bar draws how far a run is, in place: the lines that it drew before are
// overwritten.
type bar struct {
	w     io.Writer
	width func() int
	now   func() time.Time
	plain bool // no colours, and no letters but ASCII

	info     *sdk.RunInfo
	progress *sdk.RunProgress
	step     string
	drawn    int // lines on the screen
	over     bool
}

func (b *bar) tell(e sdk.RunEvent) error {
	switch {
	case e.Run != nil:
		b.info = e.Run
	case e.Progress != nil:
		b.progress = e.Progress
	case e.Step != nil:
		b.step = e.Step.Text
	}
	return b.draw()
}

func (b *bar) tick() {
	if !b.over {
		_ = b.draw()
	}
}

// done leaves what was drawn last where it stands.
func (b *bar) done() { b.over = true }

func (b *bar) draw() error {
	var out strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", b.drawn) // up
	}
	lines := b.lines()
	for _, line := range lines {
		out.WriteString("\r" + line + "\x1b[K\n") // and the rest of the line is cleared
	}
	if len(lines) < b.drawn {
		out.WriteString("\x1b[J") // what stood below is cleared
	}
	b.drawn = len(lines)
	_, err := io.WriteString(b.w, out.String())
	return err
}

// lines is what is to be seen, no line wider than the terminal.
func (b *bar) lines() []string {
	width := max(b.width()-1, 20) // the last column would wrap
	lines := []string{b.head(width)}
	if p := b.progress; p != nil {
		lines = append(lines, b.fit(progressLine(p, b.now()), width))
		if text := stagesLine(p.Stages); text != "" {
			lines = append(lines, b.tint(dim, b.fit(text, width)))
		}
	}
	if c := b.info.Cause; c != nil {
		lines = append(lines, b.tint(yellow, b.fit(placed(c.Stage, c.Message), width)))
	} else if b.step != "" && !b.info.State.Over() { // how it ended is told below
		lines = append(lines, b.tint(dim, b.fit(b.step, width)))
	}
	return lines
}

// head has the name, the state, the bar and the time that it took so far.
func (b *bar) head(width int) string {
	name, state := cmp.Or(called(b.info), b.info.ID), string(b.info.State)
	elapsed := clock(b.elapsed())
	share, known := b.share()
	percent := ""
	if known {
		percent = fmt.Sprintf(" %3d%%", int(share*100+0.5))
	}
	room := width - utf8.RuneCountInString(name) - len(state) - len(percent) - len(elapsed) - 8
	if room < 10 {
		return b.fit(name+"  "+state+percent+"  "+elapsed, width)
	}
	drawing := ""
	if known {
		room = min(room, 60)
		full := int(share * float64(room))
		on, off := "█", "░"
		if b.plain {
			on, off = "#", "."
		}
		drawing = "  " + b.tint(blue, strings.Repeat(on, full)) + strings.Repeat(off, room-full)
	}
	return b.tint(bold, name) + "  " + b.tint(runColor(b.info.State), state) + drawing + percent + "  " + elapsed
}

func (b *bar) elapsed() time.Duration {
	from := cmp.Or(b.info.StartedAt, b.info.CreatedAt)
	to := b.now()
	if !b.info.EndedAt.IsZero() {
		to = b.info.EndedAt
	}
	return max(to.Sub(from), 0)
}

// share is how much of a batch is done, of 1: by rows, else by tasks. Rows are
// estimated, so that it is whole only at the end.
func (b *bar) share() (float64, bool) {
	p := b.progress
	switch {
	case b.info.State == sdk.RunSucceeded:
		return 1, true
	case b.info.Kind == sdk.RunStream || p == nil:
		return 0, false
	case p.Rows > 0:
		return min(float64(p.Counts.Read)/float64(p.Rows), 0.99), true
	case p.Tasks > 0:
		return min(float64(p.TasksDone)/float64(p.Tasks), 0.99), true
	}
	return 0, false
}

// fit cuts a text to a width.
func (b *bar) fit(text string, width int) string {
	text = printable(text)
	r := []rune(text)
	if len(r) <= width {
		return text
	}
	if b.plain {
		return string(r[:width])
	}
	return string(r[:width-1]) + "…"
}

func (b *bar) tint(c color, text string) string {
	if b.plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// progressLine is how far a run is, in words.
func progressLine(p *sdk.RunProgress, now time.Time) string {
	parts := []string{grouped(p.Counts.Read) + " rows"}
	if p.Rows > 0 {
		parts[0] = grouped(p.Counts.Read) + " of about " + grouped(p.Rows) + " rows"
	}
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	add("%s", volume(float64(p.Counts.Bytes)))
	if p.RowsPerSecond > 0 || p.BytesPerSecond > 0 {
		add("%s rows/s", grouped(int64(p.RowsPerSecond)))
		add("%s/s", volume(p.BytesPerSecond))
	}
	if !p.ETA.IsZero() && p.ETA.After(now) {
		add("%s left", clock(p.ETA.Sub(now)))
	}
	if p.Tasks > 0 {
		add("%d of %s", p.TasksDone, counted(int64(p.Tasks), "task"))
	}
	if p.Position != "" {
		add("%.1fs behind", p.LagSeconds)
	}
	if p.Counts.Rejected > 0 {
		add("%s dead", grouped(p.Counts.Rejected))
	}
	return strings.Join(parts, "  ")
}

// stagesLine is what each stage was busy with: source, transform and sink first.
func stagesLine(stages map[string]float64) string {
	order := []string{"source", "transform", "sink"}
	names := slices.SortedFunc(maps.Keys(stages), func(a, b string) int {
		i, j := slices.Index(order, a), slices.Index(order, b)
		if i >= 0 && j >= 0 {
			return i - j
		}
		return cmp.Or(j-i, cmp.Compare(a, b))
	})
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf("%s %d%%", name, int(stages[name]*100+0.5))
	}
	return strings.Join(parts, "  ")
}

// grouped writes a number with commas between thousands.
func grouped(n int64) string {
	text := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}

// volume writes a number of bytes in the largest unit of which there is one.
func volume(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; n >= 1024 && i < len(units)-1; i++ {
		n /= 1024
	}
	if i == 0 || n >= 100 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

// lasted writes how long something took: a short time with a tenth of a second.
func lasted(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return clock(d)
}

// clock writes a span as minutes and seconds, with hours if there are any.
func clock(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}
