package plan

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A place is what a pipeline reads or writes: tables of a client, or the objects
// below a prefix. Places are told apart by the client's name.
type place struct {
	client string
	tables []string
	// prefix, if objects, is what all keys begin with.
	objects bool
	prefix  string
}

func reads(p *spec.Pipeline) place {
	at := place{client: p.Source.Client}
	switch s := p.Source; {
	case s.Table != "":
		at.tables = []string{canonical(s.Table)}
	case s.CDC != nil:
		for _, t := range s.CDC.Tables {
			at.tables = append(at.tables, canonical(t))
		}
	case s.Objects != nil:
		at.objects, at.prefix = true, folder(s.Objects.Prefix)
	}
	return at
}

func writes(p *spec.Pipeline) place {
	at := place{client: p.Sink.Client}
	if o := p.Sink.Objects; o != nil {
		at.objects, at.prefix = true, spec.StaticPrefix(o.Prefix)
		if at.prefix == o.Prefix {
			at.prefix = folder(at.prefix)
		}
		return at
	}
	if !p.Routes() { // else the rows say to which tables
		at.tables = []string{canonical(p.Sink.Table)}
	}
	return at
}

// canonical writes a table's name in one way.
func canonical(text string) string {
	name, err := driver.ParseTableName(text)
	if err != nil {
		return text
	}
	return name.String()
}

// folder ends a prefix that has no end of its own, so that a is not above ab.
func folder(prefix string) string {
	if prefix == "" || strings.HasSuffix(prefix, "/") {
		return prefix
	}
	return prefix + "/"
}

// meets reports whether two places have something in common, and names it.
func (p place) meets(o place) (what string, ok bool) {
	if p.client != o.client || p.objects != o.objects {
		return "", false
	}
	if p.objects {
		long, short := p.prefix, o.prefix
		if len(long) < len(short) {
			long, short = short, long
		}
		return fmt.Sprintf("prefix %q of client %s", long, p.client), strings.HasPrefix(long, short)
	}
	for _, t := range p.tables {
		if slices.Contains(o.tables, t) {
			return fmt.Sprintf("table %s of client %s", t, p.client), true
		}
	}
	return "", false
}

// conflicts refuses a pipeline that feeds itself, by way of others or not, and one
// that writes where another does if they undo each other's work. A caller who may
// not act as the clients of another pipeline is not told its name.
func (j *judgement) conflicts(ctx context.Context) {
	var others []*spec.Pipeline
	if j.Others != nil {
		for _, o := range j.Others(ctx) {
			if o.Name == j.p.Name && o.Name != "" {
				continue // the version before this one
			}
			if len(o.Params) > 0 {
				filled, err := o.Instantiate(nil)
				if err != nil {
					continue // a template, which runs where its values say
				}
				o = filled
			}
			others = append(others, o)
		}
	}
	name := func(p *spec.Pipeline) string {
		who := principal(ctx)
		switch {
		case p == j.p && p.Name == "":
			return "this pipeline"
		case p == j.p || who.MayActAs(p.Source.Client) && who.MayActAs(p.Sink.Client):
			return p.Name
		}
		return "another pipeline"
	}
	if way := cycle(j.p, others); way != nil {
		what, _ := writes(way[len(way)-1]).meets(reads(j.p))
		var names []string
		for _, p := range append(way, j.p) {
			names = append(names, name(p))
		}
		j.sink.refuse(athena.Errorf(athena.CodeConflict, "the pipeline would feed itself through %s: %s", what, strings.Join(names, " → ")).At("sink"))
		return
	}
	mine := writes(j.p)
	for _, o := range others {
		what, ok := mine.meets(writes(o))
		switch {
		case !ok:
		case mine.objects:
			j.sink.refuse(athena.Errorf(athena.CodeConflict, "%s writes below %s already; give each a prefix of its own", name(o), what).At("sink.objects.prefix"))
		case j.p.Mode().Staged() || o.Mode().Staged():
			j.sink.refuse(athena.Errorf(athena.CodeConflict, "%s writes to %s already, and %s leaves no rows but its own; give each a table of its own", name(o), what, staged(j.p, o)).At("sink.table"))
		}
	}
}

func staged(p, o *spec.Pipeline) driver.WriteMode {
	if p.Mode().Staged() {
		return p.Mode()
	}
	return o.Mode()
}

// cycle finds a way from a pipeline's sink back to its source: itself and those
// that its rows pass through; nil if there is none.
func cycle(p *spec.Pipeline, others []*spec.Pipeline) []*spec.Pipeline {
	seen := map[*spec.Pipeline]bool{}
	var walk func(way []*spec.Pipeline) []*spec.Pipeline
	walk = func(way []*spec.Pipeline) []*spec.Pipeline {
		out := writes(way[len(way)-1])
		if _, back := out.meets(reads(p)); back {
			return way
		}
		for _, o := range others {
			if _, on := out.meets(reads(o)); on && !seen[o] {
				seen[o] = true
				if found := walk(append(slices.Clone(way), o)); found != nil {
					return found
				}
			}
		}
		return nil
	}
	return walk([]*spec.Pipeline{p})
}
