package cdc

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// envelope returns an envelope that believes it is one second after the
// transaction of sample.
func envelope(t testing.TB, name string) Envelope {
	e, err := NewEnvelope(name)
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := e.(*debezium); ok {
		d.now = func() time.Time { return time.Date(2026, 11, 22, 10, 0, 1, 123456789, time.UTC) }
	}
	return e
}

func TestAnUnknownEnvelopeIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range append(EnvelopeNames(), "") {
		if e := envelope(t, name); e.ContentType() == "" {
			t.Errorf("%q has no content type", name)
		}
	}
	if _, err := NewEnvelope("Debezium"); err == nil || !strings.Contains(err.Error(), `"Debezium"`) || !strings.Contains(err.Error(), "debezium, cloudevents") {
		t.Errorf("got %v", err)
	}
}

func TestEnvelopesAreThoseOfTheirOwners(t *testing.T) {
	t.Parallel()
	const (
		tx     = `"tx":{"id":"771","pos":"0000000001B3A2F8","n":3,"at":"2026-11-22T10:00:00.123456Z"}`
		table  = `"client":"shop","schema":"public","table":"orders"`
		source = `"source":{"version":"athena","connector":"postgresql","name":"shop","snapshot":"false","db":"shop","sequence":null,"ts_ms":1795341600123,"ts_us":1795341600123456,"ts_ns":1795341600123456000,"schema":"public","table":"orders","txId":771,"lsn":28549880,"xmin":null},"transaction":{"id":"771:28549880","total_order":3}`
		now    = `"ts_ms":1795341601123,"ts_us":1795341601123456,"ts_ns":1795341601123456789`
		event  = `{"specversion":"1.0","id":"shop/0000000001B3A2F8.00000003","source":"/athena/cdc/shop","type":"athena.cdc.`
		rest   = `","subject":"public.orders","time":"2026-11-22T10:00:00.123456Z","datacontenttype":"application/json","data":`
	)
	line := func(op, more string) string {
		return `{"pos":"0000000001B3A2F8.00000003","op":"` + op + `",` + more + `}`
	}
	insert := line("insert", table+`,"key":{"id":7},"after":{"id":7,"n":null},`+tx)
	read := `{"pos":"0000000001B3A2F8.00000003r0000000001","op":"read",` + table + `,"key":{"id":7},"after":{"id":7}}`
	message := line("message", `"client":"shop","prefix":"p","content":"AQI=",`+tx)
	tests := map[string]struct{ envelope, line, want string }{
		"athena leaves it as it is": {EnvelopeAthena, insert, insert},
		"an insert": {EnvelopeDebezium, insert,
			`{"before":null,"after":{"id":7,"n":null},` + source + `,"op":"c",` + now + `}`},
		"an update with a large value that stayed": {EnvelopeDebezium, line("update", table+`,"key":{"id":7},"after":{"id":7},"unchanged":["a\"","b"],`+tx),
			`{"before":null,"after":{"id":7,"a\"":"__debezium_unavailable_value","b":"__debezium_unavailable_value"},` + source + `,"op":"u",` + now + `}`},
		"an update of nothing else": {EnvelopeDebezium, line("update", table+`,"before":{"id":6},"after":{ },"unchanged":["b"],`+tx),
			`{"before":{"id":6},"after":{"b":"__debezium_unavailable_value"},` + source + `,"op":"u",` + now + `}`},
		"a delete": {EnvelopeDebezium, line("delete", table+`,"key":{"id":7},"before":{"id":7,"n":1},`+tx),
			`{"before":{"id":7,"n":1},"after":null,` + source + `,"op":"d",` + now + `}`},
		"a delete of which the key is known alone": {EnvelopeDebezium, line("delete", table+`,"key":{"id":7},`+tx),
			`{"before":{"id":7},"after":null,` + source + `,"op":"d",` + now + `}`},
		"a truncate": {EnvelopeDebezium, line("truncate", table+`,`+tx),
			`{"before":null,"after":null,` + source + `,"op":"t",` + now + `}`},
		"a row of a snapshot": {EnvelopeDebezium, read,
			`{"before":null,"after":{"id":7},"source":{"version":"athena","connector":"postgresql","name":"shop","snapshot":"true","db":"shop","sequence":null,` + now + `,"schema":"public","table":"orders","txId":null,"lsn":28549880,"xmin":null},"transaction":null,"op":"r",` + now + `}`},
		"a message": {EnvelopeDebezium, message,
			`{` + strings.Replace(source, `"schema":"public","table":"orders"`, `"schema":"","table":""`, 1) + `,"op":"m",` + now + `,"message":{"prefix":"p","content":"AQI="}}`},
		"a change of another engine's": {EnvelopeDebezium, `{"pos":"0000000001B3A2F8.AA.BB.00000001","op":"update",` + table + `,"key":{"id":7},"after":{"id":7},"unchanged":["n"],"writetime":1795341600123456,"ttl":60,"late":true,"tx":{"id":"AA.BB","pos":"0000000001B3A2F8.AA.BB","n":3,"at":"2026-11-22T10:00:00.123456Z"}}`,
			`{"before":null,"after":{"id":7,"n":"__debezium_unavailable_value"},` + strings.NewReplacer(`"postgresql"`, `"athena"`, `"txId":771,"lsn":28549880`, `"txId":null,"lsn":null`, `771:28549880`, `AA.BB`).Replace(source) + `,"op":"u",` + now + `}`},
		"a change of columns is left out":      {EnvelopeDebezium, line("schema", table+`,"columns":[]`), ``},
		"an insert as an event":                {EnvelopeCloudEvents, insert, event + "insert" + rest + insert + `}`},
		"a row of a snapshot has no time":      {EnvelopeCloudEvents, read, strings.Replace(event, "003", "003r0000000001", 1) + `read","subject":"public.orders","datacontenttype":"application/json","data":` + read + `}`},
		"a message has no subject":             {EnvelopeCloudEvents, message, event + strings.Replace("message"+rest, `,"subject":"public.orders"`, "", 1) + message + `}`},
		"names that are not plain are escaped": {EnvelopeCloudEvents, `{"pos":"A.1","op":"read","client":"a b\"","schema":"ü","table":"t\"."}`, `{"specversion":"1.0","id":"a%20b%22/A.1","source":"/athena/cdc/a%20b%22","type":"athena.cdc.read","subject":"ü.t\".","datacontenttype":"application/json","data":{"pos":"A.1","op":"read","client":"a b\"","schema":"ü","table":"t\"."}}`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := envelope(t, tc.envelope).Append([]byte("x"), []byte(tc.line))
			if err != nil || string(got) != "x"+tc.want {
				t.Errorf("got  %s, %v\nwant x%s", got, err, tc.want)
			}
		})
	}
	for name, line := range map[string]string{
		"the deletion of a partition":        line("delete_partition", table+`,"key":{"pk":1}`),
		"the deletion of a range":            line("delete_range", table+`,"key":{"pk":1},"range":{}`),
		"an update of a part of a value":     line("update", table+`,"after":{"pk":1},"delta":{"tags":{"add":["a"]}}`),
		"an update of which the key is told": line("update", table+`,"key":{"pk":1}`),
		"an insert of which the key is told": line("insert", table+`,"key":{"pk":1}`),
	} {
		if dst, err := envelope(t, EnvelopeDebezium).Append([]byte("x"), []byte(line)); err == nil || string(dst) != "x" {
			t.Errorf("%s: got %s, %v", name, dst, err)
		}
	}
}

// inexpressible reports whether debezium has no form for a change.
func inexpressible(c *Change) bool {
	switch c.Op {
	case DeletePartition, DeleteRange:
		return true
	case Insert, Update, Read:
		return c.Delta != nil || c.After == nil
	case Schema:
		return false
	}
	return c.Delta != nil
}

// valid fails unless out is one line of JSON.
func valid(t interface{ Fatalf(string, ...any) }, line, out []byte) {
	if len(out) > 0 && (!json.Valid(out) || bytes.ContainsAny(out, "\r\n")) {
		t.Fatalf("%q becomes %q", line, out)
	}
}

func TestEnvelopesAreJSONWhateverTheChange(t *testing.T) {
	t.Parallel()
	for _, name := range EnvelopeNames() {
		e := envelope(t, name)
		rapid.Check(t, func(t *rapid.T) {
			c := change().Draw(t, "change")
			line := NewEncoder(c.Client).Append(nil, &c)
			out, err := e.Append(nil, line)
			if want := name == EnvelopeDebezium && inexpressible(&c); (err != nil) != want {
				t.Fatalf("%s: %v", line, err)
			}
			valid(t, line, out)
		})
	}
}

func FuzzDebezium(f *testing.F)    { fuzz(f, EnvelopeDebezium) }
func FuzzCloudEvents(f *testing.F) { fuzz(f, EnvelopeCloudEvents) }

func fuzz(f *testing.F, name string) {
	f.Add(NewEncoder("shop").Append(nil, sample()))
	f.Add([]byte(`{"pos":"A.1","op":"message","prefix":"p","content":"AQI=","tx":{"id":"x","pos":"A","n":1,"at":"1970-01-01T00:00:00Z"}}`))
	f.Add([]byte(`{"pos":"0000000000000000.1","op":"update","after":{},"unchanged":["\ud800"]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		out, err := envelope(t, name).Append(nil, line)
		if err != nil && len(out) > 0 {
			t.Fatalf("%q: %v with %q", line, err, out)
		}
		valid(t, line, out)
	})
}
