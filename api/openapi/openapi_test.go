package openapi_test

import (
	"slices"
	"testing"

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
