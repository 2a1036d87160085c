package envelope

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// Negotiate returns the one of the offered media types that the Accept header
// likes best. Of equals, the more exactly named wins, then the one offered
// first. Where it likes none, or there is no header, it is the first offer:
// an answer in another form says more than a refusal.
func Negotiate(h http.Header, offers ...string) string {
	best, bestQ, bestExact := offers[0], 0.0, -1
	for _, offer := range offers {
		q, exact := quality(h, offer)
		if q > bestQ || q == bestQ && q > 0 && exact > bestExact {
			best, bestQ, bestExact = offer, q, exact
		}
	}
	return best
}

// wantsProblem holds where problem+json is named in so many words, and not
// liked less than plain JSON.
func wantsProblem(h http.Header) bool {
	q, exact := quality(h, "application/problem+json")
	plain, _ := quality(h, "application/json")
	return exact == 2 && q > 0 && q >= plain
}

// quality is the weight (0 to 1) that the header gives to a media type, and how
// exactly it names it: 2 in full, 1 as type/*, 0 as */*. RFC 9110, 12.5.1.
func quality(h http.Header, offer string) (q float64, exact int) {
	accept := strings.Join(h.Values("Accept"), ",")
	if strings.TrimSpace(accept) == "" {
		return 1, 0
	}
	exact = -1
	family, _, _ := strings.Cut(offer, "/")
	for item := range strings.SplitSeq(accept, ",") {
		name, params, err := mime.ParseMediaType(item)
		if err != nil {
			continue
		}
		as := -1
		switch name {
		case offer:
			as = 2
		case family + "/*":
			as = 1
		case "*/*":
			as = 0
		}
		if as <= exact {
			continue
		}
		weight := 1.0
		if s, ok := params["q"]; ok {
			if w, err := strconv.ParseFloat(s, 64); err == nil && w >= 0 && w <= 1 {
				weight = w
			}
		}
		q, exact = weight, as
	}
	return q, exact
}
