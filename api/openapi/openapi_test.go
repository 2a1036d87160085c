package openapi_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/api/openapi"
	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/pkg/athena"
)

func TestTheDocumentIsValidAndKnowsEveryCode(t *testing.T) {
	t.Parallel()
	doc := openapitest.Load(t)
	if !doc.IsOpenAPI31OrLater() {
		t.Errorf("the document is OpenAPI %s, want 3.1", doc.OpenAPI)
	}
	codes := doc.Components.Schemas["Code"].Value.Enum
	for _, code := range athena.Codes() {
		if !slices.Contains(codes, any(string(code))) {
			t.Errorf("code %s is not in the document", code)
		}
	}
	if len(codes) != len(athena.Codes()) {
		t.Errorf("the document has %d codes, there are %d", len(codes), len(athena.Codes()))
	}
}

func TestThePageHasEveryOperationSchemaAndCodeAndFetchesNothing(t *testing.T) {
	t.Parallel()
	html, policy, err := openapi.Render()
	if err != nil {
		t.Fatal(err)
	}
	page := string(html)
	doc := openapitest.Load(t)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.OperationID == "" || !strings.Contains(page, `id="`+op.OperationID+`"`) {
				t.Errorf("%s %s has no anchor", method, path)
			}
		}
	}
	for name := range doc.Components.Schemas {
		if !strings.Contains(page, `id="schema-`+name+`"`) {
			t.Errorf("schema %s has no anchor", name)
		}
	}
	for _, code := range athena.Codes() {
		if !strings.Contains(page, `id="error-`+string(code)+`"`) {
			t.Errorf("code %s has no anchor", code)
		}
	}
	for _, link := range regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(page, `id="`+link[1]+`"`) {
			t.Errorf("the link #%s leads nowhere", link[1])
		}
	}
	for _, fetch := range []string{"src=", "<script", "<link", "url(", "@import", "ZgotmplZ"} {
		if strings.Contains(page, fetch) {
			t.Errorf("the page has %q", fetch)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none'") {
		t.Errorf("the policy is %q", policy)
	}
}
