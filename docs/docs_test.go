// Package docs_test holds the documentation against the program: links lead
// somewhere, and tables that repeat what the code says say the same.
package docs_test

import (
	"cmp"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/config"
)

var update = flag.Bool("update", false, "write configuration.md anew")

const root = ".."

// pages lists the Markdown files of the repository.
func pages(t *testing.T) []string {
	var list []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			list = append(list, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	fence   = regexp.MustCompile("(?s)```.*?```")
	code    = regexp.MustCompile("`[^`\n]*`")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	unsaid  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the fragments that a page's headings can be reached by.
func anchors(text string) map[string]bool {
	set := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		set[strings.ReplaceAll(unsaid.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
	}
	return set
}

func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	links := 0
	for _, page := range pages(t) {
		text := code.ReplaceAllString(fence.ReplaceAllString(read(t, page), ""), "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			path := filepath.Join(filepath.Dir(page), target)
			if target == "" {
				path = page
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
				continue
			}
			if fragment != "" && !anchors(read(t, path))[fragment] {
				t.Errorf("%s links to %s, and no heading has that name", page, m[1])
			}
		}
	}
	if links < 20 {
		t.Errorf("only %d relative links were found: the test looks at the wrong tree", links)
	}
}

// TestConfigurationIsComplete holds configuration.md to be what config.Describe
// says. Write it anew with: go test ./docs -update
func TestConfigurationIsComplete(t *testing.T) {
	t.Parallel()
	want := configuration()
	if *update {
		if err := os.WriteFile("configuration.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, "configuration.md") != want {
		t.Error("configuration.md is not what the settings are; write it anew with: go test ./docs -update")
	}
}

func configuration() string {
	var b strings.Builder
	b.WriteString(`# Configuration

Settings of ` + "`athena serve`" + `, ` + "`worker`" + ` and ` + "`doctor`" + `. They come from a YAML file (` + "`--config`" + ` or ` + "`ATHENA_CONFIG`" + `), over it the environment, and over that ` + "`--set KEY=VALUE`" + ` and the other flags. The key ` + "`a.b`" + ` is ` + "`a: {b: …}`" + ` in the file and ` + "`ATHENA_A_B`" + ` in the environment; lists are separated by commas there. An unknown key is refused, and so is a variable that looks like a slip of the pen.

This page is made from the program: ` + "`go test ./docs -update`" + `. ` + "`athena help settings`" + ` prints the same.

| key | type | default | |
| --- | --- | --- | --- |
`)
	cell := strings.NewReplacer("|", `\|`, "\n", " ", "*", `\*`)
	for _, k := range config.Describe() {
		doc := cell.Replace(k.Doc)
		if k.Allowed != "" {
			doc += " (" + cell.Replace(k.Allowed) + ")"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Path, k.Type, cell.Replace(cmp.Or(k.Default, "–")), doc)
	}
	b.WriteString(`
Variables that are no settings: ` + "`ATHENA_CONFIG`" + ` names the file, ` + "`ATHENA_SECRET_KEY`" + ` holds the deployment's key in place of the key file, and ` + "`ATHENA_ADMIN_KEY`" + ` is an admin key to be let in.
`)
	return b.String()
}

// TestErrorsAreComplete holds the table of errors against the codes.
func TestErrorsAreComplete(t *testing.T) {
	t.Parallel()
	page := read(t, "http.md")
	for _, c := range athena.Codes() {
		retry := map[bool]string{true: "yes", false: "no"}[c.Retryable()]
		row := fmt.Sprintf("| `%s` | %d | %s | ", c, envelope.Status(c), retry)
		if !strings.Contains(page, row) {
			t.Errorf("http.md has no row that begins %q", row)
		}
	}
}

// TestStreamsAreComplete holds the table of streams against the topology.
func TestStreamsAreComplete(t *testing.T) {
	t.Parallel()
	page := read(t, "architecture.md")
	for _, s := range bus.Topology(bus.Config{}) {
		for _, word := range append([]string{strings.TrimPrefix(s.Name, "KV_")}, s.Subjects...) {
			if !strings.HasPrefix(word, "$KV.") && !strings.Contains(page, "`"+word+"`") {
				t.Errorf("architecture.md does not name `%s` of %s", word, s.Name)
			}
		}
	}
}
