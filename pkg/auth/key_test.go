package auth_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
)

const sample = "ath_0123456789abcdef.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func TestParseKey(t *testing.T) {
	t.Parallel()
	if k, err := auth.ParseKey(sample); err != nil || k.ID != "0123456789abcdef" || k.Reveal() != sample {
		t.Errorf("got %v, %v", k, err)
	}
	for name, text := range map[string]string{
		"nothing":                           "",
		"another prefix":                    "atx" + sample[3:],
		"no id":                             "ath_." + sample[21:],
		"an id in capitals":                 strings.Replace(sample, "abcdef", "ABCDEF", 1),
		"an id that is not hex":             strings.Replace(sample, "0123", "01g3", 1),
		"no dot":                            strings.Replace(sample, ".", "-", 1),
		"a secret that is short":            sample[:len(sample)-1],
		"a secret that is long":             sample + "A",
		"a secret in the other alphabet":    sample[:len(sample)-2] + "+A",
		"a second spelling of the same key": sample[:len(sample)-1] + "B",
		"a newline within":                  sample[:len(sample)-2] + "\nA",
		"white space around":                " " + sample[:len(sample)-1],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := auth.ParseKey(text)
			if athena.CodeOf(err) != athena.CodeUnauthenticated {
				t.Fatalf("got %v", err)
			}
			if text != "" && strings.Contains(err.Error(), text) {
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}
}

func TestKeysPrintWithoutTheirSecret(t *testing.T) {
	t.Parallel()
	k := auth.NewKey()
	_, secret, _ := strings.Cut(k.Reveal(), ".")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		for _, v := range []any{k, &k, struct{ K auth.Presented }{k}} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, secret) || !strings.Contains(got, k.ID) {
				t.Errorf("%s prints %s", verb, got)
			}
		}
	}
}

func TestNewKeysDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		k := auth.NewKey()
		if seen[k.ID] || seen[k.Reveal()] {
			t.Fatal("a key came twice")
		}
		seen[k.ID], seen[k.Reveal()] = true, true
		if again, err := auth.ParseKey(k.Reveal()); err != nil || again != k {
			t.Fatalf("%v is read back as %v, %v", k, again, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(sample)
	f.Add(auth.NewKey().Reveal())
	f.Add("ath_0123456789abcdef.")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := auth.ParseKey(text)
		switch {
		case err != nil && athena.CodeOf(err) != athena.CodeUnauthenticated:
			t.Fatalf("%q: %v", text, err)
		case err == nil && k.Reveal() != text:
			t.Fatalf("%q is read as %q", text, k.Reveal())
		}
	})
}

func FuzzParseGrant(f *testing.F) {
	f.Add("query")
	f.Add("deferred:read")
	f.Fuzz(func(t *testing.T, text string) {
		if g, err := auth.ParseGrant(text); err == nil && g.String() != text {
			t.Fatalf("%q is read as %q", text, g)
		}
	})
}

func TestFromHeader(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		headers []string // name: value
		want    string
		code    athena.Code
	}{
		"none":                            {},
		"bearer":                          {headers: []string{"Authorization: Bearer k1"}, want: "k1"},
		"bearer in another case":          {headers: []string{"authorization: bEaReR   k1 "}, want: "k1"},
		"athena's own":                    {headers: []string{"x-athena-key: k1"}, want: "k1"},
		"apikey":                          {headers: []string{"apikey: k1"}, want: "k1"},
		"x-api-key":                       {headers: []string{"X-API-Key: k1"}, want: "k1"},
		"the same key in all":             {headers: []string{"Authorization: Bearer k1", "X-Athena-Key: k1", "apikey: k1", "x-api-key: k1"}, want: "k1"},
		"two keys":                        {headers: []string{"Authorization: Bearer k1", "apikey: k2"}, code: athena.CodeInvalidRequest},
		"two keys in one header":          {headers: []string{"apikey: k1", "apikey: k2"}, code: athena.CodeInvalidRequest},
		"two keys, the third as the last": {headers: []string{"apikey: k1", "x-api-key: k2", "x-api-key: k1"}, code: athena.CodeInvalidRequest},
		"another scheme is not a key":     {headers: []string{"Authorization: Basic k1"}},
		"another scheme and a key":        {headers: []string{"Authorization: Basic xx", "apikey: k1"}, want: "k1"},
		"an empty header is none":         {headers: []string{"apikey: ", "Authorization: Bearer"}},
		"a cookie is not a key":           {headers: []string{"Cookie: apikey=k1"}},
		"a subprotocol":                   {headers: []string{"Sec-WebSocket-Protocol: athena, ath_1"}, want: "ath_1"},
		"another subprotocol":             {headers: []string{"Sec-WebSocket-Protocol: athena, chat"}},
		"a subprotocol and another key":   {headers: []string{"Sec-WebSocket-Protocol: ath_1", "apikey: ath_2"}, code: athena.CodeInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			for _, line := range test.headers {
				name, value, _ := strings.Cut(line, ": ")
				h.Add(name, value)
			}
			got, err := auth.FromHeader(h)
			if got != test.want || athena.CodeOf(err) != test.code {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// TestAuthorize states the law of rights in other words than the code does.
func TestAuthorize(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		grant := rapid.Custom(func(t *rapid.T) auth.Grant {
			return auth.Grant{
				Right:  rapid.SampledFrom(auth.Rights()).Draw(t, "right"),
				Access: rapid.SampledFrom([]auth.Access{auth.Write, auth.Read}).Draw(t, "access"),
			}
		})
		p := &auth.Principal{
			Grants:  rapid.SliceOfN(grant, 0, 4).Draw(t, "grants"),
			Clients: rapid.SliceOfN(rapid.SampledFrom([]string{"shop", "lake"}), 0, 2).Draw(t, "clients"),
		}
		want := grant.Draw(t, "wanted")
		client := rapid.SampledFrom([]string{"", "shop", "lake", "other"}).Draw(t, "client")

		held := map[string]bool{}
		for _, g := range p.Grants {
			held[g.String()] = true
		}
		may := held[string(want.Right)] || held["admin"]
		if want.Access == auth.Read {
			may = may || held[string(want.Right)+":read"] || held["admin:read"]
		}
		bound := len(p.Clients) > 0
		for _, c := range p.Clients {
			bound = bound && c != client
		}
		err := p.Authorize(want.Right, want.Access, client)
		switch ok := may && (client == "" || !bound); {
		case ok && err != nil, !ok && athena.CodeOf(err) != athena.CodeForbidden:
			t.Fatalf("%v for %v as %q: %v", p, want, client, err)
		}
	})
	var nobody *auth.Principal
	if err := nobody.Authorize(auth.Query, auth.Read, "shop"); athena.CodeOf(err) != athena.CodeUnauthenticated {
		t.Errorf("a stranger got %v", err)
	}
}
