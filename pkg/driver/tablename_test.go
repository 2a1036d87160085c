package driver_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestTableNamesSurviveText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.StringMatching(`[a-zA-Z_."* ,ü]{1,6}`)
		n := driver.TableName{Schema: part.Draw(t, "schema"), Table: part.Draw(t, "table")}
		got, err := driver.ParseTableName(n.String())
		if err != nil || got != n {
			t.Fatalf("%#v is written %s and read as %#v, %v", n, n, got, err)
		}
	})
}

func TestTableNamesThatAreNone(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", ".", "a.", ".a", "a.b.c", `"a`, `"a"b`, `a b`, "public.*", "a,b"} {
		if n, err := driver.ParseTableName(text); err == nil {
			t.Errorf("%q was read as %#v", text, n)
		}
	}
	if n, err := driver.ParseTableName("orders"); err != nil || n != (driver.TableName{Schema: "public", Table: "orders"}) {
		t.Errorf("orders was read as %#v, %v", n, err)
	}
}
