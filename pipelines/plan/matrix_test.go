package plan_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// kinds are the stages that a definition can have, with what they need as
// architecture.md has it: said here once more, as the independent word.
type kind struct {
	yaml    string // with %s for the client
	needs   []athena.Capability
	engines []athena.Engine
	streams bool
	mode    string // of a sink table
}

func sources() map[string]kind {
	tables := []athena.Engine{athena.EnginePostgres, athena.EngineScylla}
	return map[string]kind{
		"table":   {yaml: "{client: %s, table: public.t}", needs: []athena.Capability{athena.PipelineSource, athena.GatewayQuery}, engines: tables},
		"query":   {yaml: "{client: %s, query: select 1 as id}", needs: []athena.Capability{athena.PipelineSource, athena.GatewayQuery}, engines: tables},
		"cdc":     {yaml: "{client: %s, cdc: {tables: [public.t]}}", needs: []athena.Capability{athena.PipelineSource, athena.CDC}, engines: tables, streams: true},
		"objects": {yaml: "{client: %s, objects: {prefix: in/}}", needs: []athena.Capability{athena.PipelineSource, athena.ObjectRead}, engines: []athena.Engine{athena.EngineS3}},
	}
}

func sinks() map[string]kind {
	out := map[string]kind{}
	for _, mode := range []string{"append", "upsert", "merge", "overwrite"} {
		engines := []athena.Engine{athena.EnginePostgres, athena.EngineScylla}
		if mode == "merge" || mode == "overwrite" { // at once, for which CQL has no transaction
			engines = engines[:1]
		}
		key := ""
		if mode == "upsert" || mode == "merge" {
			key = ", key: [id]"
		}
		out["table "+mode] = kind{
			yaml:  "{client: %s, table: public.copy, mode: " + mode + key + "}",
			needs: []athena.Capability{athena.PipelineSink, athena.GatewayQuery}, engines: engines, mode: mode,
		}
	}
	for _, format := range []string{"parquet", "ndjson", "csv"} {
		out["objects "+format] = kind{
			yaml:  "{client: %s, objects: {prefix: out/, format: " + format + "}}",
			needs: []athena.Capability{athena.PipelineSink, athena.ObjectWrite}, engines: []athena.Engine{athena.EngineS3},
		}
	}
	return out
}

// TestEveryEngineStageAndMode walks engine × source × engine × sink × mode. What is
// allowed passes; what is not is refused by the stage that is to blame with the
// code of the reason, and nobody is dialled.
func TestEveryEngineStageAndMode(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, e := range athena.Engines() {
		for _, end := range []string{"a", "b"} {
			h.define(fmt.Sprintf("all-%s-%s", end, e), nowhere[e], everything)
			h.define(fmt.Sprintf("none-%s-%s", end, e), nowhere[e], 0)
			for c := athena.GatewayQuery; c <= athena.PipelineSink; c++ {
				h.define(fmt.Sprintf("no-%s-%s-%s", c, end, e), nowhere[e], everything.Minus(athena.Allow(c)))
			}
		}
	}
	for _, c := range slices.Collect(func(yield func(string) bool) {
		for name := range h.clients {
			if !yield(name) {
				return
			}
		}
	}) {
		h.capture(c, "t")
	}
	cells := 0
	expect := func(at, source, sink string, stage string, code athena.Code) {
		t.Helper()
		cells++
		got := h.plan(plan.Static, "source: "+source+"\nsink: "+sink)
		if s := first(got); s.Stage != stage || s.Code != code {
			t.Errorf("%s: %s %s and not %s %s\n%s", at, s.Stage, s.Code, stage, code, describe(got))
		}
	}
	use := func(k kind, client string) string { return fmt.Sprintf(k.yaml, client) }
	for sourceName, source := range sources() {
		for sinkName, sink := range sinks() {
			if source.streams && (sink.mode == "merge" || sink.mode == "overwrite") {
				continue // the definition itself is refused
			}
			for _, from := range athena.Engines() {
				for _, to := range athena.Engines() {
					at := fmt.Sprintf("%s on %s to %s on %s", sourceName, from, sinkName, to)
					a, b := use(source, "all-a-"+string(from)), use(sink, "all-b-"+string(to))
					switch {
					case !slices.Contains(source.engines, from):
						expect(at, a, b, "source", athena.CodeCapabilityUnsupported)
						expect(at+", nothing granted", use(source, "none-a-"+string(from)), b, "source", athena.CodeCapabilityUnsupported)
					case !slices.Contains(sink.engines, to):
						expect(at, a, b, "sink", athena.CodeCapabilityUnsupported)
						expect(at+", nothing granted", a, use(sink, "none-b-"+string(to)), "sink", athena.CodeCapabilityUnsupported)
					default:
						expect(at, a, b, "", "")
						for _, c := range source.needs {
							expect(at+" without "+c.String(), use(source, fmt.Sprintf("no-%s-a-%s", c, from)), b, "source", athena.CodeCapabilityDenied)
						}
						for _, c := range sink.needs {
							expect(at+" without "+c.String(), a, use(sink, fmt.Sprintf("no-%s-b-%s", c, to)), "sink", athena.CodeCapabilityDenied)
						}
						expect(at+", nothing granted", use(source, "none-a-"+string(from)), b, "source", athena.CodeCapabilityDenied)
						expect(at+", nothing granted", a, use(sink, "none-b-"+string(to)), "sink", athena.CodeCapabilityDenied)
					}
				}
			}
		}
	}
	if n := h.opens.Load(); n != 0 {
		t.Errorf("%d connections were opened", n)
	}
	t.Logf("%d cells", cells)
	if cells < 300 {
		t.Errorf("only %d cells", cells)
	}
}
