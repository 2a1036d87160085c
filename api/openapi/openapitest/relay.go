package openapitest

import (
	"strings"
	"testing"
)

// A Relay hands what is found over to the test of the input under way, which a
// fuzzer sets before each request. That the document refuses a request is no
// finding here: it minds the case of a field's name, which encoding/json does not.
// It is used by one input at a time.
type Relay struct{ testing.TB }

// Errorf reports a finding, unless it is the document's refusal of a request.
func (r *Relay) Errorf(format string, args ...any) {
	r.Helper()
	if !strings.Contains(format, "the document refuses the request") {
		r.TB.Errorf(format, args...)
	}
}
