package scylla

import (
	"maps"
	"testing"

	"github.com/gocql/gocql"
)

func TestOptionsOfALogAreReadFromTheirExtension(t *testing.T) {
	t.Parallel()
	raw := []byte("\x02\x00\x00\x00\x07\x00\x00\x00enabled\x04\x00\x00\x00true\x03\x00\x00\x00ttl\x02\x00\x00\x0060")
	if got, ok := decodeOptions(raw); !ok || !maps.Equal(got, map[string]string{"enabled": "true", "ttl": "60"}) {
		t.Errorf("%v, %v", got, ok)
	}
	for n := range raw {
		if got, ok := decodeOptions(raw[:n]); ok {
			t.Errorf("the first %d bytes are taken for %v", n, got)
		}
	}
	if got, ok := decodeOptions(append(raw, 0)); ok {
		t.Errorf("with a byte too many it is %v", got)
	}
}

// A form that is not known must not keep anybody from reading the table.
func TestAFormOfOptionsThatIsNotKnownIsSaidToThoseWhoCapture(t *testing.T) {
	t.Parallel()
	m := &tableMeta{columns: []tableColumn{{name: "id", kind: kindPartitionKey, typ: gocql.NewNativeType(protocol, gocql.TypeInt)}}, cdcErr: errShort}
	if _, err := m.logOptions(); err == nil {
		t.Error("it is not said")
	}
	if got := m.keyDefinition(); got != "PRIMARY KEY (id)" {
		t.Errorf("the key is %s", got)
	}
}

func FuzzDecodeOptions(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x01\x00\x00\x00a\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) { decodeOptions(raw) })
}
