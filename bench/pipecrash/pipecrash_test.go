package pipecrash

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

var (
	all    = flag.Bool("all", false, "run all scenarios, and not just two short ones; a point that no process dies at is a failure")
	points = flag.Int("points", 150, "with -all: about how many times processes are killed")
	only   = flag.String("scenarios", "", "a regular expression that chooses scenarios, of all")
	seed   = flag.Uint64("seed", 1, "what kills and rows are chosen by")
)

// A group is scenarios that run one after the other on one deployment.
type group struct {
	name string
	rig  rig.Config
	// tables are those of the source that are captured; none if there are no streams.
	tables    []string
	scenarios []scenario
}

// A scenario shows one thing. Its name says what.
type scenario struct {
	name string
	// kills is its share of them.
	kills int
	run   func(s *stage, kills int)
}

var binary string // of Athena, with crash points

// count counts how processes died, over all groups.
var count = &tally{by: map[string]int{}}

type tally struct {
	mu sync.Mutex
	by map[string]int
}

func (t *tally) died(point string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by[point]++
}

// sum is the number of kills, and what they were.
func (t *tally) sum() (kills int, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var by []string
	for _, p := range append(crashpoint.PipelinePoints(), killed, server, frozen) {
		by = append(by, fmt.Sprintf("%s %d", p, t.by[p]))
		if p != frozen {
			kills += t.by[p]
		}
	}
	return kills, strings.Join(by, ", ")
}

func (t *tally) missed() (points []string) {
	for _, p := range crashpoint.PipelinePoints() {
		if t.by[p] == 0 {
			points = append(points, p)
		}
	}
	return points
}

func TestMain(m *testing.M) { os.Exit(s3test.Run(built{m})) }

// built builds Athena before the tests run, and says in the end what was killed.
type built struct{ m *testing.M }

func (b built) Run() int {
	flag.Parse()
	if testing.Short() && !*all {
		return b.m.Run()
	}
	dir, err := os.MkdirTemp("", "athena-pipecrash-")
	if err == nil {
		defer os.RemoveAll(dir)
		binary, err = rig.Build(context.Background(), dir, "crashpoints")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := b.m.Run()
	kills, text := count.sum()
	fmt.Printf("pipecrash: %d kills (%s)\n", kills, text)
	switch missed := count.missed(); {
	case !*all:
		fmt.Println("pipecrash: 2 of its scenarios ran; all run with: go test ./bench/pipecrash -v -args -all")
	case *only == "" && len(missed) > 0:
		fmt.Printf("pipecrash: no process died at %s\n", strings.Join(missed, ", "))
		return max(code, 1)
	}
	return code
}

// TestPipelinesThatAreKilledWriteEveryRowOnce runs the groups beside each other.
func TestPipelinesThatAreKilledWriteEveryRowOnce(t *testing.T) {
	if testing.Short() && !*all {
		t.Skip("it starts processes and takes a while; run it without -short")
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	chosen := groups()
	if !*all && *only == "" {
		chosen = []group{short()}
	}
	shares := 0
	for i := range chosen {
		g := &chosen[i]
		g.scenarios = slices.DeleteFunc(g.scenarios, func(sc scenario) bool { return !match.MatchString(sc.name) })
		for _, sc := range g.scenarios {
			shares += sc.kills
		}
	}
	for i, g := range chosen {
		if len(g.scenarios) == 0 {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
			defer cancel()
			s := newStage(ctx, t, g, *seed+uint64(i)<<32)
			for _, sc := range g.scenarios {
				kills := sc.kills
				if *all && *only == "" {
					kills = max(1, (sc.kills**points+shares/2)/shares)
				}
				if !t.Run(sc.name, func(t *testing.T) { sc.run(s.in(t), kills) }) {
					break // what is left of it would be in the way of the next
				}
			}
		})
	}
}
