package main

import (
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/athena-pipelines/athena/"

// mayNot holds, for each part of the tree, the parts that it must not import.
// A trailing slash means everything below.
var mayNot = map[string][]string{
	"pkg/":            {"api/", "api", "workers/", "pipelines/", "cmd/"},
	"pipelines/":      {"api/", "api", "workers/", "cmd/", "pkg/driver/"},
	"workers/":        {"api/", "api", "cmd/", "pkg/driver/"},
	"api/":            {"workers/", "cmd/", "pkg/driver/"},
	"api":             {"workers/", "cmd/", "pkg/driver/"},
	"pkg/driver":      {"pkg/driver/", "pkg/bus", "pkg/dispatch", "pkg/resolver", "pkg/catalog", "pkg/auth"},
	"pkg/driver/":     {"pkg/bus", "pkg/dispatch", "pkg/resolver", "pkg/catalog", "pkg/auth", "pkg/deferred"},
	"pkg/dispatch":    {"pkg/driver/", "pkg/bus", "pkg/resolver", "pkg/catalog"},
	"pkg/resolver":    {"pkg/driver/", "pkg/bus"},
	"pkg/catalog":     {"pkg/driver/"},
	"pkg/deferred":    {"pkg/driver/", "pkg/resolver", "pkg/catalog"},
	"pkg/telemetry":   {"pkg/driver/", "pkg/resolver", "pkg/catalog"},
	"cmd/athena":      {},
	"pkg/localpg":     {"pkg/"},
	"pkg/locals3":     {"pkg/"},
	"pkg/bus":         {"pkg/driver", "pkg/driver/", "pkg/dispatch", "pkg/catalog", "pkg/deferred"},
	"pkg/webhook":     {"pkg/driver", "pkg/driver/", "pkg/bus", "pkg/catalog"},
	"pkg/sdk":         {"pkg/bus", "pkg/catalog", "pkg/resolver", "pkg/driver/"},
	"pkg/config":      {"pkg/bus", "pkg/catalog", "pkg/resolver", "pkg/driver/"},
	"workers/deliver": {"workers/deferred"},
}

// TestImportsPointOneWay shows an import that goes against the tree's grain.
// `go list` leaves test files out, so tests may use any driver.
func TestImportsPointOneWay(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-f", `{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}{{"\n"}}{{end}}`, module+"...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	pairs := 0
	for line := range strings.Lines(string(out)) {
		from, to, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		from, to = strings.TrimPrefix(from, module), strings.TrimPrefix(to, module)
		pairs++
		// Packages such as pgtest are for tests, for each other, and for the programs
		// that run tests.
		if helper(from) {
			continue
		}
		if helper(to) && from != "bench" && !within(from, "bench/") {
			t.Errorf("%s imports %s, which is for tests", from, to)
		}
		for part, banned := range mayNot {
			for _, b := range banned {
				if within(from, part) && within(to, b) && !own(from, to) {
					t.Errorf("%s imports %s; %s must not import %s", from, to, part, b)
				}
			}
		}
		if (from == "pkg/athena" || from == "pkg/cdc") && strings.Contains(strings.SplitN(to, "/", 2)[0], ".") {
			t.Errorf("%s imports %s; it may import the standard library only", from, to)
		}
		if (from == "pkg/athena" || from == "pkg/cdc") && within(to, "pkg/") {
			t.Errorf("%s imports %s; it may import the standard library only", from, to)
		}
	}
	if pairs < 100 {
		t.Fatalf("go list showed only %d imports: the test looks at the wrong tree", pairs)
	}
}

// TestOnlyTheWiringNamesDrivers holds that concrete drivers are imported by one
// file.
func TestOnlyTheWiringNamesDrivers(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("grep", "-rlE", `"`+module+`pkg/driver/(postgres|scylla|s3)"`, "--include=*.go", "../..").CombinedOutput()
	if err != nil {
		t.Fatalf("grep: %v\n%s", err, out)
	}
	for file := range strings.Lines(string(out)) {
		file = strings.TrimPrefix(strings.TrimSpace(file), "../../")
		switch {
		case file == "cmd/athena/app.go", strings.HasSuffix(file, "_test.go"), helper(path.Dir(file)),
			strings.HasPrefix(file, "pkg/driver/"), strings.HasPrefix(file, "bench/"):
		default:
			t.Errorf("%s names a concrete driver; only cmd/athena/app.go may", file)
		}
	}
}

// within reports whether a package is a part, or, for a part with a trailing
// slash, stands below it.
func within(pkg, part string) bool {
	if below, ok := strings.CutSuffix(part, "/"); ok {
		return strings.HasPrefix(pkg, below+"/")
	}
	return pkg == part
}

// helper reports whether a package of ours is for tests alone.
func helper(pkg string) bool {
	root, _, below := strings.Cut(pkg, "/")
	return below && slices.Contains([]string{"api", "pkg", "workers"}, root) && strings.HasSuffix(pkg, "test")
}

// own reports whether a package imports from its own subtree, such as a helper
// for its tests.
func own(from, to string) bool {
	return strings.HasPrefix(to, from+"/") || strings.HasPrefix(from, to+"/")
}
