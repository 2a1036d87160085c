package admin

import (
	"crypto/hmac"
	"encoding/base64"
	"fmt"

	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// macSize is how much of a MAC a cursor carries: 128 bits cannot be guessed.
const macSize = 16

// page is where a page of a list begins. What callers get for a cursor holds the
// list's own and a MAC over it, the list and its filters, so that it cannot be
// made up, nor be used for another list.
type page struct {
	cursor string // the list's own
	scope  []byte
	signer Signer
}

// page reads the parameter cursor for a list with the given filters.
func (f *Family) page(q *params.Query, list string, filters ...string) page {
	p := page{scope: fmt.Appendf(nil, "%s %q ", list, filters), signer: f.cfg.Cursors}
	text := q.String("cursor")
	if text == "" {
		return p
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) <= macSize || !hmac.Equal(p.mac(raw[macSize:]), raw[:macSize]) {
		q.Refuse(athena.Errorf(athena.CodeInvalidRequest, "cursor is not one that this list gave for these filters; begin again without it").At("cursor"))
		return p
	}
	p.cursor = string(raw[macSize:])
	return p
}

// sign makes the caller's cursor of the list's own; empty stays empty.
func (p page) sign(cursor string) string {
	if cursor == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(p.mac([]byte(cursor)), cursor...))
}

func (p page) mac(cursor []byte) []byte {
	return p.signer.Sign("api/admin cursor", append(p.scope[:len(p.scope):len(p.scope)], cursor...))[:macSize]
}
