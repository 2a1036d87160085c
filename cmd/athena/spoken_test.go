package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestRoutesAreSpokenAsCommands(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`there is no pipeline "a"; list them with GET /pipelines`:                                    `there is no pipeline "a"; list them with athena pipeline list`,
		`there is no run "a"; list them with GET /runs`:                                              `there is no run "a"; list them with athena pipeline runs`,
		`pipeline "a" is a batch; run it with POST /pipelines/a/runs`:                                `pipeline "a" is a batch; run it with athena pipeline run a`,
		`stop it first (POST /pipelines/a/stop, athena pipeline stop a)`:                             `stop it first (athena pipeline stop a)`,
		`cancel its run (POST /runs/{id}/cancel), or pause its schedule (POST /pipelines/a-b/pause)`: `cancel its run (athena pipeline cancel RUN), or pause its schedule (athena pipeline pause a-b)`,
		`store the definition with PUT /pipelines/{name} and start it`:                               `store the definition with athena pipeline apply and start it`,
		`the changes of client "shop" are not captured; POST /cdc/shop/enable begins it`:             `the changes of client "shop" are not captured; athena cdc enable --client shop begins it`,
		`reset is for POST /pipelines/{name}/start`:                                                  `reset is for athena pipeline start`,
		`"GET /pipelines" in quotes of somebody else's GET /pipelinesque is none`:                    `"athena pipeline list" in quotes of somebody else's GET /pipelinesque is none`,
	} {
		if got := spoken(text); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestNoMessageAboutPipelinesIsLeftOut looks for routes in what the server says.
func TestNoMessageAboutPipelinesIsLeftOut(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../api/pipelines/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	message := regexp.MustCompile(`(?:Errorf|Sprintf)\([^"]*"((?:[^"\\]|\\.)*(?:GET|PUT|POST|DELETE) /(?:[^"\\]|\\.)*)"`)
	route := regexp.MustCompile(`(GET|PUT|POST|DELETE) /`)
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range message.FindAllStringSubmatch(string(text), -1) {
			found++
			if said := spoken(strings.ReplaceAll(m[1], "%s", "name")); route.MatchString(said) {
				t.Errorf("%s: %s", file, said)
			}
		}
	}
	if found < 5 {
		t.Errorf("%d messages were found", found)
	}
}
