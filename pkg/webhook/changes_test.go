package webhook

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

func TestTheMessageOfChanges(t *testing.T) {
	t.Parallel()
	c := Changes{
		Client: "shop", Subscription: "s", Since: t0, From: "A.1", Cursor: "A.4", First: "A.2", Last: "A.3", At: t0.Add(time.Second),
		Count: 2, JSON: []byte(`{"pos":"A.2"},{"pos":"A.3"}`),
	}
	want := `{"type":"cdc.changes","timestamp":"2026-03-04T05:06:08Z","data":{"client":"shop","subscription":"s","from":"A.1","cursor":"A.4","changes":[{"pos":"A.2"},{"pos":"A.3"}]}}`
	if got := string(c.Payload()); got != want || !json.Valid([]byte(got)) {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	id := c.ID()
	again := c
	again.At, again.From, again.Cursor = t0.Add(time.Hour), "A.0", "A.9" // what was left out changes no change
	if again.ID() != id || !strings.HasPrefix(id, "cdc_") || strings.Contains(id, ".") {
		t.Errorf("the ids of the same changes are %s and %s", id, again.ID())
	}
	for name, change := range map[string]func(*Changes){
		"of another client":               func(c *Changes) { c.Client = "shops" },
		"of another subscription":         func(c *Changes) { c.Subscription = "t" },
		"of one that was made anew":       func(c *Changes) { c.Since = c.Since.Add(time.Second) },
		"that begin elsewhere":            func(c *Changes) { c.First = "A.1" },
		"that end elsewhere":              func(c *Changes) { c.Last = "A.4" },
		"of names that meet at their end": func(c *Changes) { c.Client, c.Subscription = "shop\x00s", "" },
	} {
		other := c
		if change(&other); other.ID() == id {
			t.Errorf("changes %s have the same id", name)
		}
	}
}

func TestARefusedURLNamesItsField(t *testing.T) {
	t.Parallel()
	g := &Guard{}
	e := athena.AsError(g.Check(t.Context(), "url", "http://10.0.0.1/"))
	if e.Code != athena.CodeInvalidRequest || e.Details["field"] != "url" || !strings.HasPrefix(e.Message, `url "http://10.0.0.1/" is not allowed`) {
		t.Errorf("got %v with %v", e, e.Details)
	}
	if e := athena.AsError(g.CheckURL(t.Context(), "http://10.0.0.1/")); e.Details["field"] != Field {
		t.Errorf("got %v with %v", e, e.Details)
	}
}
