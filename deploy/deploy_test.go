// Package deploy_test holds the deployment files against the program: what they
// name exists.
package deploy_test

import (
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exported is a scrape in which every metric has a value.
func exported(t *testing.T) string {
	m := telemetry.NewMetrics("test")
	m.Operation("shop", "postgres", "gateway", "", time.Millisecond)
	m.JobMoved("shop", "queued")
	m.JobStarted("shop", time.Second)
	m.WebhookTried("delivered")
	m.Published("ATH_JOBS", time.Millisecond)
	m.Captures(func() []telemetry.Capture {
		now := time.Now()
		return []telemetry.Capture{
			{Client: "shop", State: "snapshot", Slot: true, SnapshotTotal: 1},
			{Client: "wide", State: "streaming", Streams: 1, Complete: now, Swept: now, Expires: now},
		}
	})
	m.Pipelines(func() telemetry.Pipelines {
		return telemetry.Pipelines{
			Each:         []telemetry.Pipeline{{Name: "orders", State: "streaming", Runs: map[string]int{"streaming": 1}, Live: true, Stream: true}},
			RejectedMost: 1,
		}
	})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	return w.Body.String()
}

var metric = regexp.MustCompile(`\b(?:athena|process)_[a-z_]+`)

func TestMetricsExist(t *testing.T) {
	t.Parallel()
	scrape := exported(t)
	for _, path := range []string{"prometheus/athena.rules.yaml", "grafana/athena.json", "../docs/operations.md"} {
		found := metric.FindAllString(read(t, path), -1)
		if len(found) < 8 {
			t.Errorf("%s names only %d metrics: the test looks for the wrong thing", path, len(found))
		}
		for _, name := range found {
			if !strings.Contains(scrape, "\n"+name+"{") && !strings.Contains(scrape, "\n"+name+" ") &&
				!strings.Contains(scrape, "# TYPE "+name+" ") {
				t.Errorf("%s uses the metric %s, which Athena does not export", path, name)
			}
		}
	}
}

// TestAlertsAreExplained holds that operations.md says what to do about each
// alert.
func TestAlertsAreExplained(t *testing.T) {
	t.Parallel()
	page := read(t, "../docs/operations.md")
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(read(t, "prometheus/athena.rules.yaml"), -1) {
		if !strings.Contains(page, "| "+m[1]+" |") {
			t.Errorf("docs/operations.md does not say what to do about %s", m[1])
		}
	}
}

var variable = regexp.MustCompile(`\bATHENA_[A-Z0-9_]*[A-Z0-9]\b`)

func TestSettingsExist(t *testing.T) {
	t.Parallel()
	known := []string{"ATHENA_CONFIG", "ATHENA_SECRET_KEY", "ATHENA_ADMIN_KEY"}
	for _, k := range config.Describe() {
		known = append(known, k.Env)
	}
	seen := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".go") {
			return err
		}
		for _, name := range variable.FindAllString(read(t, path), -1) {
			seen++
			if name != "ATHENA_PORT" && !slices.Contains(known, name) { // which the chart keeps out
				t.Errorf("%s names %s, which is no setting", path, name)
			}
		}
		return nil
	})
	if err != nil || seen < 10 {
		t.Errorf("%d settings were found, %v", seen, err)
	}
}

func TestDefinitionsCanBeRead(t *testing.T) {
	t.Parallel()
	clients, err := catalog.LoadDir("clients.d")
	if err != nil || len(clients) != 1 || clients[0].Lifecycle != athena.Active {
		t.Errorf("clients.d holds %d clients, %v", len(clients), err)
	}
}
