package main

import "regexp"

// spoken says in commands what the server says in routes: whoever sees it here has
// the commands at hand.
func spoken(text string) string {
	for _, r := range routes {
		text = r.route.ReplaceAllString(text, r.command)
	}
	return text
}

var routes = []struct {
	route   *regexp.Regexp
	command string
}{
	{regexp.MustCompile(`POST \S+, (athena )`), "$1"}, // it has both
	{regexp.MustCompile(`GET /pipelines/\{name\}/runs`), "athena pipeline runs"},
	{regexp.MustCompile(`GET /runs\b`), "athena pipeline runs"},
	{regexp.MustCompile(`GET /pipelines\b`), "athena pipeline list"},
	{regexp.MustCompile(`PUT /pipelines/\{name\}`), "athena pipeline apply"},
	{regexp.MustCompile(`POST /pipelines/plan\b`), "athena pipeline plan"},
	{regexp.MustCompile(`POST /pipelines/\{name\}/start\b`), "athena pipeline start"},
	{regexp.MustCompile(`POST /pipelines/([a-z][a-z0-9_-]*)/runs\b`), "athena pipeline run $1"},
	{regexp.MustCompile(`POST /pipelines/([a-z][a-z0-9_-]*)/(start|stop|pause|resume)\b`), "athena pipeline $2 $1"},
	{regexp.MustCompile(`POST /runs/\{id\}/(cancel|pause|resume)\b`), "athena pipeline $1 RUN"},
	{regexp.MustCompile(`POST /cdc/([a-z][a-z0-9_-]*)/enable\b`), "athena cdc enable --client $1"},
}
