package athena_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
)

const shop = `{
	"client_name": "shop", "engine": "postgres", "lifecycle": "active",
	"capabilities": {"gateway_query": true, "raw_sql": true, "cdc": false},
	"connection": {"dsn": "env:SHOP_DSN", "max_conns": 8},
	"limits": {"max_running": 4, "statement_timeout": "1m30s", "max_result_bytes": 10737418240},
	"metadata": {"team": "checkout"}, "revision": 7}`

func decode(t testing.TB, text string) *athena.Client {
	t.Helper()
	c, err := athena.DecodeClient([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDecodeClient(t *testing.T) {
	t.Parallel()
	got := decode(t, shop)
	want := &athena.Client{
		Name: "shop", Lifecycle: athena.Active,
		Capabilities: athena.Allow(athena.GatewayQuery, athena.RawSQL),
		Connection:   athena.PostgresConn{DSN: athena.NewSecret("env:SHOP_DSN"), MaxConns: 8},
		Limits:       athena.Limits{MaxRunning: 4, StatementTimeout: athena.Duration(90 * time.Second), MaxResultBytes: 10 << 30},
		Metadata:     map[string]any{"team": "checkout"},
		Revision:     7,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got.Engine() != athena.EnginePostgres {
		t.Errorf("engine %s", got.Engine())
	}
}

func TestDecodeClientNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	with := func(old, new string) string {
		if !strings.Contains(shop, old) {
			t.Fatalf("no %s to replace", old)
		}
		return strings.Replace(shop, old, new, 1)
	}
	conn := func(engine, c string) string {
		return `{"client_name":"c","lifecycle":"active","engine":"` + engine + `","connection":` + c + `}`
	}
	for name, test := range map[string]struct {
		text, field, says string
	}{
		"an unknown field":                  {with(`"revision"`, `"revison"`), "revison", "unknown field"},
		"an unknown field of connection":    {with(`"max_conns"`, `"max_cons"`), "connection.max_cons", "unknown field"},
		"an unknown field of limits":        {with(`"max_running"`, `"max_runing"`), "limits.max_runing", "unknown field"},
		"an unknown field deep within":      {conn("scylla", `{"hosts":["h"],"tls":{"ca":"x"}}`), "connection.tls.ca", "unknown field"},
		"an unknown capability":             {with(`"raw_sql"`, `"raw_sgl"`), "capabilities.raw_sgl", "gateway_query, raw_sql"},
		"a capability that is neither":      {with(`"raw_sql": true`, `"raw_sql": "yes"`), "capabilities.raw_sql", "true or false"},
		"capabilities as a list":            {with(`{"gateway_query": true, "raw_sql": true, "cdc": false}`, `["cdc"]`), "capabilities", "object of booleans"},
		"a number for a text":               {with(`"shop"`, `5`), "client_name", "it must be a string"},
		"a number for a secret":             {with(`"env:SHOP_DSN"`, `5`), "connection.dsn", "it must be a string"},
		"a text for a number":               {with(`"max_running": 4`, `"max_running": "4"`), "limits.max_running", "it must be a whole number"},
		"a fraction for a whole number":     {with(`"max_running": 4`, `"max_running": 4.5`), "limits.max_running", "it must be a whole number"},
		"a number for a duration":           {with(`"1m30s"`, `90`), "limits.statement_timeout", `such as "60s"`},
		"a word for a duration":             {with(`"1m30s"`, `"soon"`), "limits.statement_timeout", "write it as 500ms"},
		"a duration below zero":             {with(`"1m30s"`, `"-1s"`), "limits.statement_timeout", "not a duration"},
		"a duration above the most":         {with(`"1m30s"`, `"25h"`), "limits.statement_timeout", "between"},
		"a limit below zero":                {with(`"max_running": 4`, `"max_running": -4`), "limits.max_running", "between 0"},
		"a revision below zero":             {with(`"revision": 7`, `"revision": -7`), "revision", "not negative"},
		"an unknown lifecycle":              {with(`"active"`, `"asleep"`), "lifecycle", "active, frozen or inactive"},
		"no lifecycle":                      {with(`"lifecycle": "active",`, ``), "lifecycle", "missing"},
		"an unknown engine":                 {with(`"postgres"`, `"oracle"`), "engine", "postgres, scylla or s3"},
		"no engine":                         {with(`"engine": "postgres",`, ``), "engine", "missing"},
		"a name in capitals":                {with(`"shop"`, `"Shop"`), "client_name", "must start with a letter"},
		"a name with a dot":                 {with(`"shop"`, `"shop.eu"`), "client_name", "shop.eu"},
		"a name of 64 letters":              {with(`"shop"`, `"`+strings.Repeat("x", 64)+`"`), "client_name", "at most 63"},
		"no connection":                     {`{"client_name":"c","lifecycle":"active","engine":"s3"}`, "connection", "missing"},
		"a connection of null":              {conn("postgres", `null`), "connection.dsn", "missing"},
		"a connection as text":              {conn("postgres", `"pl4nted"`), "connection", "it must be an object"},
		"another engine's connection":       {conn("s3", `{"dsn":"pl4nted"}`), "connection.dsn", "unknown field"},
		"no contact points":                 {conn("scylla", `{"hosts":[]}`), "connection.hosts", "at least one"},
		"a contact point with a scheme":     {conn("scylla", `{"hosts":["h","cql://h:9042"]}`), "connection.hosts[1]", "host:port"},
		"a contact point of no name":        {conn("scylla", `{"hosts":[""]}`), "connection.hosts[0]", "host:port"},
		"a port of no number":               {conn("scylla", `{"hosts":["h:cql"]}`), "connection.hosts[0]", "host:port"},
		"a port beyond the last":            {conn("scylla", `{"hosts":["h:65536"]}`), "connection.hosts[0]", "host:port"},
		"an address that does not end":      {conn("scylla", `{"hosts":["[::1:9042"]}`), "connection.hosts[0]", "host:port"},
		"a keyspace in quotes":              {conn("scylla", `{"hosts":["h"],"keyspace":"\"Ks\""}`), "connection.keyspace", "without quotes"},
		"a consistency of another engine":   {conn("scylla", `{"hosts":["h"],"consistency":"local_quorum"}`), "connection.consistency", "LOCAL_QUORUM"},
		"a consistency for conditions":      {conn("scylla", `{"hosts":["h"],"consistency":"SERIAL"}`), "connection.consistency", "LOCAL_QUORUM"},
		"a serial consistency of reads":     {conn("scylla", `{"hosts":["h"],"serial_consistency":"QUORUM"}`), "connection.serial_consistency", "LOCAL_SERIAL"},
		"a password without a name":         {conn("scylla", `{"hosts":["h"],"password":"env:P"}`), "connection.username", "go together"},
		"a name without a password":         {conn("scylla", `{"hosts":["h"],"username":"u"}`), "connection.username", "go together"},
		"a datacenter with white space":     {conn("scylla", `{"hosts":["h"],"datacenter":" dc1"}`), "connection.datacenter", "white space"},
		"a contact point that is a number":  {conn("scylla", `{"hosts":["h",5]}`), "connection.hosts[1]", "it must be a string"},
		"more connections than are allowed": {conn("postgres", `{"dsn":"x","max_conns":1001}`), "connection.max_conns", "between 1 and 1000"},
		"no bucket":                         {conn("s3", `{}`), "connection.bucket", "missing"},
		"half of a key pair":                {conn("s3", `{"bucket":"b","secret_access_key":"pl4nted"}`), "connection.access_key_id", "go together"},
		"a list":                            {`[]`, "", "it must be an object"},
		"nothing":                           {` `, "", "missing"},
		"null":                              {`null`, "client_name", "not allowed"},
		"half a document":                   {shop[:60], "", "ends too early"},
		"a comma too much":                  {`{"client_name":"c",}`, "", "not valid JSON at byte 20"},
		"a second document":                 {shop + "{}", "", "after its JSON value"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := athena.DecodeClient([]byte(test.text))
			if c != nil || athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Fatalf("got %v, %v", c, err)
			}
			e := athena.AsError(err)
			if field, _ := e.Details["field"].(string); field != test.field {
				t.Errorf("the field is %q, want %q (%v)", field, test.field, err)
			}
			if !strings.Contains(e.Message, test.says) || strings.Contains(e.Message, "pl4nted") {
				t.Errorf("the message is %q", e.Message)
			}
		})
	}
}

func TestDecodeJSONPrefix(t *testing.T) {
	t.Parallel()
	type inner struct {
		N int `json:"n"`
	}
	type embedded struct {
		E bool `json:"e"`
	}
	type body struct {
		embedded
		Embedded2 embedded          `json:"second"`
		List      []inner           `json:"list"`
		Ptr       *inner            `json:"ptr"`
		Map       map[string]string `json:"map"`
		Any       any               `json:"any"`
		hidden    int
	}
	_ = body{}.hidden
	for text, field := range map[string]string{
		`{"e": 1}`:                           "at.e",
		`{"second": {"e": 1}}`:               "at.second.e",
		`{"list": [{"n": 1}, {"n": "x"}]}`:   "at.list[1].n",
		`{"list": [{"n": 1}, {"m": 1}]}`:     "at.list[1].m",
		`{"list": {}}`:                       "at.list",
		`{"ptr": {"x": 1}}`:                  "at.ptr.x",
		`{"map": {"k": 5}}`:                  "at.map",
		`{"hidden": 1}`:                      "at.hidden",
		`{"any": {"x": 1}, "` + "é" + `":1}`: "at.é",
		`5`:                                  "at",
		``:                                   "at",
	} {
		var b body
		err := athena.DecodeJSON([]byte(text), &b, "at")
		if athena.CodeOf(err) != athena.CodeInvalidRequest || athena.AsError(err).Details["field"] != field {
			t.Errorf("%s: got %v at %v, want %s", text, err, athena.AsError(err).Details, field)
		}
	}
	var b body
	if err := athena.DecodeJSON([]byte(`{"e":true,"list":[{"n":1}],"ptr":null,"map":{"k":"v"},"any":[1]}`), &b, "at"); err != nil || !b.E {
		t.Errorf("%v, %v", b, err)
	}
}

func TestClientShowsNoSecret(t *testing.T) {
	t.Parallel()
	clients := []*athena.Client{
		{Name: "p", Connection: athena.PostgresConn{DSN: athena.NewSecret("pl4nted")}},
		{Name: "s", Connection: athena.ScyllaConn{Hosts: []string{"h"}, Password: athena.NewSecret("pl4nted")}},
		{Name: "o", Connection: athena.S3Conn{Bucket: "b", AccessKeyID: "id", SecretAccessKey: athena.NewSecret("sealed:pl4nted")}},
	}
	for _, c := range clients {
		for _, v := range []any{c, *c, c.Connection, []any{c}, map[string]any{"c": c}} {
			for how, shown := range showings(t, v) {
				if strings.Contains(shown, "pl4nted") {
					t.Errorf("%s shows %s", how, shown)
				}
			}
		}
		if b, err := json.Marshal(c); err != nil || !bytes.Contains(b, []byte(`"***"`)) {
			t.Errorf("%s, %v", b, err)
		}
	}
}

// showings prints v in all the ways that logs, messages and answers are made.
func showings(t *testing.T, v any) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T"} {
		out[verb] = fmt.Sprintf(verb, v)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out["json"] = string(b)
	for name, handler := range map[string]func(io.Writer) slog.Handler{
		"slog text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		"slog json": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
	} {
		var buf bytes.Buffer
		slog.New(handler(&buf)).Info("m", "v", v)
		out[name] = buf.String()
	}
	out["error"] = fmt.Errorf("with %v", v).Error()
	return out
}

func TestSecretPrintsAsStars(t *testing.T) {
	t.Parallel()
	s := athena.NewSecret("pl4nted")
	type nested struct {
		S athena.Secret
		p *athena.Secret
		u athena.Secret
	}
	for _, v := range []any{s, &s, nested{s, &s, s}, &nested{s, &s, s}, []athena.Secret{s}, map[string]athena.Secret{"k": s}} {
		for how, shown := range showings(t, v) {
			if strings.Contains(shown, "pl4nted") || strings.Contains(shown, fmt.Sprintf("%x", "pl4nted")) {
				t.Errorf("%s of a %T shows %s", how, v, shown)
			}
		}
	}
	if got := fmt.Sprint(s); got != athena.Redacted {
		t.Errorf("prints %q", got)
	}
	if got := fmt.Sprint(athena.Secret{}); got != "" {
		t.Errorf("an empty secret prints %q, which looks like one that is set", got)
	}
}

func TestSecretReferences(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		kind athena.SecretKind
		rest string
	}{
		"env:NAME":          {athena.SecretEnv, "NAME"},
		"file:/a:b":         {athena.SecretFile, "/a:b"},
		"sealed:x":          {athena.SecretSealed, "x"},
		"env:":              {athena.SecretEnv, ""},
		"ENV:NAME":          {athena.SecretLiteral, "ENV:NAME"},
		"postgres://env:x@": {athena.SecretLiteral, "postgres://env:x@"},
		"":                  {athena.SecretLiteral, ""},
	} {
		if kind, rest := athena.NewSecret(text).Reference(); kind != want.kind || rest != want.rest {
			t.Errorf("%q is %q, %q", text, kind, rest)
		}
	}
}

func TestEncodeStored(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		reference := rapid.Custom(func(t *rapid.T) athena.Secret {
			return athena.NewSecret(rapid.SampledFrom([]string{"env:", "file:", "sealed:"}).Draw(t, "kind") + rapid.String().Draw(t, "rest"))
		})
		word := rapid.StringMatching(`[a-zA-Z0-9<>&"\\ ]{1,8}`)
		c := &athena.Client{
			Name:         rapid.StringMatching(`[a-z][a-z0-9_-]{0,62}`).Draw(t, "name"),
			Lifecycle:    rapid.SampledFrom([]athena.Lifecycle{athena.Active, athena.Frozen, athena.Inactive}).Draw(t, "lifecycle"),
			Capabilities: athena.Capabilities(rapid.Uint64Range(0, 1<<12-1).Draw(t, "capabilities")),
			Limits: athena.Limits{
				MaxRunning:       rapid.IntRange(0, 1000).Draw(t, "max_running"),
				StatementTimeout: athena.Duration(rapid.Int64Range(0, int64(24*time.Hour)).Draw(t, "timeout")),
			},
			Revision: rapid.Uint64().Draw(t, "revision"),
		}
		if rapid.Bool().Draw(t, "has metadata") {
			c.Metadata = map[string]any{word.Draw(t, "key"): word.Draw(t, "value")}
		}
		switch rapid.SampledFrom(athena.Engines()).Draw(t, "engine") {
		case athena.EnginePostgres:
			c.Connection = athena.PostgresConn{DSN: reference.Draw(t, "dsn"), MaxConns: rapid.IntRange(0, 1000).Draw(t, "conns")}
		case athena.EngineScylla:
			host := rapid.StringMatching(`[a-z][a-z0-9.-]{0,20}(:[1-9][0-9]{0,3})?`)
			conn := athena.ScyllaConn{Hosts: rapid.SliceOfN(host, 1, 3).Draw(t, "hosts")}
			if rapid.Bool().Draw(t, "has password") {
				conn.Username, conn.Password, conn.TLS = word.Draw(t, "username"), reference.Draw(t, "password"), &athena.TLS{SkipVerify: true}
			}
			c.Connection = conn
		case athena.EngineS3:
			conn := athena.S3Conn{Bucket: word.Draw(t, "bucket")}
			if rapid.Bool().Draw(t, "has key") {
				conn.AccessKeyID, conn.SecretAccessKey = word.Draw(t, "id"), reference.Draw(t, "secret")
			}
			c.Connection = conn
		}
		raw, err := c.EncodeStored()
		if err != nil {
			t.Fatal(err)
		}
		back, err := athena.DecodeClient(raw)
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		if !reflect.DeepEqual(back, c) {
			t.Fatalf("stored as %s", raw)
		}
	})
}

func TestEncodeStoredRefusesALiteral(t *testing.T) {
	t.Parallel()
	for _, conn := range []athena.Connection{
		athena.PostgresConn{DSN: athena.NewSecret("pl4nted")},
		athena.ScyllaConn{Hosts: []string{"h"}, Password: athena.NewSecret("pl4nted")},
		athena.S3Conn{Bucket: "b", AccessKeyID: "id", SecretAccessKey: athena.NewSecret("pl4nted")},
	} {
		raw, err := (&athena.Client{Name: "c", Lifecycle: athena.Active, Connection: conn}).EncodeStored()
		if err == nil || raw != nil || strings.Contains(err.Error(), "pl4nted") {
			t.Errorf("%T: %s, %v", conn, raw, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.Custom(func(t *rapid.T) athena.Capabilities {
			return athena.Capabilities(rapid.Uint64Range(0, 1<<12-1).Draw(t, "bits"))
		})
		a, b := set.Draw(t, "a"), set.Draw(t, "b")
		if athena.Allow(a.List()...) != a {
			t.Fatalf("the list of %v is another set", a)
		}
		for _, c := range athena.Allow(a.List()...).List() {
			if !a.Has(c) {
				t.Fatalf("%v lists %v and has it not", a, c)
			}
			if parsed, ok := athena.ParseCapability(c.String()); !ok || parsed != c {
				t.Fatalf("%v is read as %v", c, parsed)
			}
			if got := a.Minus(b).Has(c); got == b.Has(c) {
				t.Fatalf("%v minus %v: %v %v", a, b, c, got)
			}
		}
		raw, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var back athena.Capabilities
		if err := json.Unmarshal(raw, &back); err != nil || back != a {
			t.Fatalf("%s is read as %v, %v", raw, back, err)
		}
	})
}

// TestCapabilityNames holds the names to the founding contract and the
// /pipelines family: stored definitions have them.
func TestCapabilityNames(t *testing.T) {
	t.Parallel()
	const want = "gateway_query, raw_sql, raw_cql, schema_read, migrations_read, provisioning, deferred_query, cdc, object_read, object_write, pipeline_source, pipeline_sink"
	if got := athena.Capabilities(1<<12 - 1).String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	raw, err := json.Marshal(athena.Capabilities(0))
	if err != nil || bytes.Count(raw, []byte(":false")) != 12 {
		t.Errorf("what is not granted is not spelled out: %s, %v", raw, err)
	}
	var zero athena.Capabilities
	if zero.Has(athena.GatewayQuery) || len(zero.List()) != 0 {
		t.Error("the zero value allows something")
	}
	if got := athena.Capability(200).String(); got != "unknown" {
		t.Errorf("a capability that is none prints %q", got)
	}
}

func TestRequire(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		lifecycle athena.Lifecycle
		granted   athena.Capabilities
		want      athena.Code
	}{
		"active and granted":       {athena.Active, athena.Allow(athena.CDC, athena.RawSQL), ""},
		"active and granted half":  {athena.Active, athena.Allow(athena.CDC), athena.CodeCapabilityDenied},
		"active and not granted":   {athena.Active, 0, athena.CodeCapabilityDenied},
		"frozen comes first":       {athena.Frozen, 0, athena.CodeClientFrozen},
		"frozen and granted":       {athena.Frozen, athena.Allow(athena.CDC, athena.RawSQL), athena.CodeClientFrozen},
		"inactive and granted":     {athena.Inactive, athena.Allow(athena.CDC, athena.RawSQL), athena.CodeClientInactive},
		"no lifecycle is inactive": {"", athena.Allow(athena.CDC, athena.RawSQL), athena.CodeClientInactive},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &athena.Client{Name: "c", Lifecycle: test.lifecycle, Capabilities: test.granted}
			if got := athena.CodeOf(c.Require(athena.CDC, athena.RawSQL)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("pl4nted")
	e := athena.Wrap(athena.CodeConflict, cause, "taken by %s", "x")
	if e.Error() != "conflict: taken by x" || strings.Contains(fmt.Sprintf("%v", e), "pl4nted") {
		t.Errorf("prints %v", e)
	}
	if !errors.Is(e, cause) {
		t.Error("the cause cannot be reached")
	}
	at := e.At("f").With("k", 1).RetryIn(time.Second)
	if e.Details != nil || e.RetryAfter != 0 {
		t.Errorf("At, With or RetryIn changed their receiver: %+v", e)
	}
	if fmt.Sprint(at.Details) != "map[field:f k:1]" || at.RetryAfter != time.Second || !errors.Is(at, cause) {
		t.Errorf("got %+v", at)
	}
	_ = at.With("k", 2)
	if at.Details["k"] != 1 {
		t.Error("With changed the details of its receiver")
	}
}

func TestCodeOf(t *testing.T) {
	t.Parallel()
	own := athena.Errorf(athena.CodeClientFrozen, "m")
	for name, test := range map[string]struct {
		err  error
		want athena.Code
	}{
		"nil":                      {nil, ""},
		"an own error":             {own, athena.CodeClientFrozen},
		"an own error within":      {fmt.Errorf("x: %w", own), athena.CodeClientFrozen},
		"the outermost counts":     {athena.Wrap(athena.CodeTimeout, own, "m"), athena.CodeTimeout},
		"a cancelled context":      {fmt.Errorf("x: %w", context.Canceled), athena.CodeCancelled},
		"a deadline":               {context.DeadlineExceeded, athena.CodeTimeout},
		"an own error over those":  {athena.Wrap(athena.CodeQueryFailed, context.Canceled, "m"), athena.CodeQueryFailed},
		"anything else is our own": {io.ErrUnexpectedEOF, athena.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := athena.CodeOf(test.err); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			switch e := athena.AsError(test.err); {
			case test.err == nil:
				if e != nil {
					t.Errorf("nil became %v", e)
				}
			case e.Code != test.want || !errors.Is(e, test.err) && !errors.Is(test.err, e):
				t.Errorf("became %v", e)
			case strings.Contains(e.Message, "EOF"):
				t.Errorf("the cause is shown: %v", e)
			}
		})
	}
}

func TestCodesAreListedOnce(t *testing.T) {
	t.Parallel()
	seen := map[athena.Code]bool{}
	for _, c := range athena.Codes() {
		if seen[c] || c == "" {
			t.Errorf("%q is listed twice or empty", c)
		}
		seen[c] = true
	}
	if !athena.CodeClientFrozen.Retryable() || athena.CodeForbidden.Retryable() {
		t.Error("retryable is the wrong way round")
	}
}

// FuzzDecodeClient: no input may panic, no error may lack its code, and what is
// read can be stored and read again.
func FuzzDecodeClient(f *testing.F) {
	f.Add([]byte(shop))
	f.Add([]byte(`{"client_name":"c","engine":"scylla","lifecycle":"frozen","connection":{"hosts":["a:1"],"password":"sealed:x","tls":{}}}`))
	f.Add([]byte(`{"client_name":"c","engine":"s3","lifecycle":"inactive","connection":{"bucket":"b","access_key_id":"i","secret_access_key":"env:X"},"metadata":{"a":[1,{"b":null}]}}`))
	f.Add([]byte(`{"limits":{"statement_timeout":"1h","max_running":1e3}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := athena.DecodeClient(raw)
		if err != nil {
			if athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Fatalf("%v has code %q", err, athena.CodeOf(err))
			}
			if len(err.Error()) > 2000 {
				t.Fatalf("the message has %d bytes", len(err.Error()))
			}
			return
		}
		sealed := *c
		sealed.Connection, err = c.Connection.MapSecrets(func(_ string, s athena.Secret) (athena.Secret, error) {
			if kind, _ := s.Reference(); kind == athena.SecretLiteral && !s.IsZero() {
				return athena.NewSecret("sealed:" + s.Reveal()), nil
			}
			return s, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		stored, err := sealed.EncodeStored()
		if err != nil {
			t.Fatal(err)
		}
		back, err := athena.DecodeClient(stored)
		if err != nil {
			t.Fatalf("%s: %v", stored, err)
		}
		again, err := back.EncodeStored()
		if err != nil || !bytes.Equal(stored, again) {
			t.Fatalf("stored as %s, then as %s (%v)", stored, again, err)
		}
	})
}

func TestScyllaAddresses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"node1": "node1:9042", "node1:19042": "node1:19042", "10.0.0.1": "10.0.0.1:9042", "10.0.0.1:9043": "10.0.0.1:9043",
		"::1": "[::1]:9042", "[::1]": "[::1]:9042", "[2001:db8::1]:9043": "[2001:db8::1]:9043", "node-1.dc_2.example.com": "node-1.dc_2.example.com:9042",
	} {
		got, err := athena.ScyllaConn{Hosts: []string{text}}.Addresses()
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s is %v, %v; want %s", text, got, err, want)
		}
	}
}
