package chaos

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

var (
	all    = flag.Bool("all", false, "run all scenarios, and not just a short one")
	quick  = flag.Bool("quick", false, "with -all: smaller sizes, and without the scenarios that take minutes")
	only   = flag.String("scenarios", "", "a regular expression that chooses scenarios, of all")
	seed   = flag.Uint64("seed", 1, "what faults and writes are chosen by")
	rounds = flag.Int("rounds", 1, "how often the scenarios run, each time with the next seed")
)

// A scenario shows one thing. Its name says what.
type scenario struct {
	name string
	// rig is what it runs on; two workers if it says nothing of workers.
	rig rig.Config
	// alone scenarios measure times, and nothing runs beside them.
	alone bool
	// long ones take minutes; -quick leaves them out.
	long bool
	run  func(s *stage)
}

func scenarios() []scenario {
	return slices.Concat(killed(), database(), network(), broker(), owners(), lost(), data(), idle(), subscribers())
}

// short is the scenario that runs where nobody asks for more.
const short = "a database that crashes is captured on, and nothing is lost or repeated"

var binary string // of Athena, with crash points

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "athena-chaos-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	if testing.Short() && !*all {
		code = m.Run()
	} else if binary, err = rig.Build(context.Background(), dir, "crashpoints"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		os.Chmod(dir, 0o755)
		code = pgtest.Run(m)
	}
	os.RemoveAll(dir)
	if n := len(scenarios()); !*all && *only == "" {
		fmt.Printf("chaos: at most 1 of %d scenarios ran; all run with: go test ./bench/chaos -v -args -all\n", n)
	}
	os.Exit(code)
}

// TestChaos runs the scenarios: those that measure times one by one, the others
// beside each other.
func TestChaos(t *testing.T) {
	if testing.Short() && !*all {
		t.Skip("it starts processes and takes a while; run it without -short")
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	for round := range uint64(*rounds) {
		t.Run(fmt.Sprintf("seed %d", *seed+round), func(t *testing.T) {
			for _, sc := range scenarios() {
				switch {
				case *only == "" && !*all && sc.name != short, !match.MatchString(sc.name), *quick && sc.long:
					continue
				}
				t.Run(sc.name, func(t *testing.T) {
					if !sc.alone {
						t.Parallel()
					}
					ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
					defer cancel()
					sc.run(newStage(ctx, t, sc.rig, *seed+round))
				})
			}
		})
	}
}

// choose is one size for -quick, and another for the rest.
func choose[T any](small, full T) T {
	if *quick || !*all {
		return small
	}
	return full
}
