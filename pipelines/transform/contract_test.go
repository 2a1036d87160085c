package transform_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

func schema(columns string, key ...string) *record.Schema {
	s := &record.Schema{Key: key}
	for _, c := range strings.Fields(columns) {
		name, text, _ := strings.Cut(c, ":")
		typ, err := record.ParseType(text)
		if err != nil {
			panic(err)
		}
		s.Columns = append(s.Columns, record.Column{Name: name, Type: typ})
	}
	return s
}

// columns writes a schema as schema reads it.
func columns(s *record.Schema) string {
	var list []string
	for _, c := range s.Columns {
		list = append(list, c.Name+":"+c.Type.String())
	}
	return strings.Join(list, " ")
}

func TestAContractDecidesWhatBecomesOfChangedSchemas(t *testing.T) {
	t.Parallel()
	expected := schema("id:int64 n:int32 s:text", "id")
	const added = "id:int64 n:int32 s:text x:text"
	const wider = "id:int64 n:int64 s:text"
	const other = "id:int64 n:text s:text"
	const narrower = "id:int64 n:int16 s:text"
	row := func(s string) string { return s }
	newRows := []string{row(`{"id":1,"n":1,"s":"a","x":"new"}`), row(`{"id":2,"n":2,"s":"b","x":null}`)}
	wideRows := []string{`{"id":1,"n":5000000000,"s":"a"}`, `{"id":2,"n":2,"s":"b"}`}
	textRows := []string{`{"id":1,"n":"many","s":"a"}`, `{"id":2,"n":"2","s":"b"}`}
	tests := map[string]struct {
		contract spec.Contract
		actual   string
		rows     []string
		stop     string // the error
		out      string // the schema of what goes on
		expects  string // from now on
		want     []string
		rejected []int
		dropped  int
	}{
		"nothing has changed":                   {spec.Contract{}, "id:int64 n:int32 s:text", []string{`{"id":1,"n":1,"s":"a"}`}, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":1,"n":1,"s":"a"}`}, nil, 0},
		"a column that is gone is no change":    {spec.Contract{Columns: spec.Freeze}, "id:int64 n:int32", []string{`{"id":1,"n":1}`}, "", "id:int64 n:int32", "id:int64 n:int32 s:text", []string{`{"id":1,"n":1}`}, nil, 0},
		"unless it is of the key":               {spec.Contract{}, "n:int32 s:text", nil, `column "id" of the key does not come any more`, "", "", nil, nil, 0},
		"a narrower type fits":                  {spec.Contract{}, narrower, []string{`{"id":1,"n":1,"s":"a"}`}, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":1,"n":1,"s":"a"}`}, nil, 0},
		"a new column evolves by default":       {spec.Contract{}, added, newRows, "", added, added, newRows, nil, 0},
		"a new column, frozen":                  {spec.Contract{Columns: spec.Freeze}, added, nil, `column "x" (text) is new`, "", "", nil, nil, 0},
		"a new column, its values discarded":    {spec.Contract{Columns: spec.DiscardValue}, added, newRows, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":1,"n":1,"s":"a"}`, `{"id":2,"n":2,"s":"b"}`}, nil, 0},
		"a new column, its rows discarded":      {spec.Contract{Columns: spec.DiscardRow}, added, newRows, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":2,"n":2,"s":"b"}`}, nil, 1},
		"a new column, its rows quarantined":    {spec.Contract{Columns: spec.Quarantine}, added, newRows, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":2,"n":2,"s":"b"}`}, []int{0}, 0},
		"a wider type is frozen by default":     {spec.Contract{}, wider, nil, `column "n" was int32 and is int64`, "", "", nil, nil, 0},
		"a wider type evolves":                  {spec.Contract{Types: spec.Evolve}, wider, wideRows, "", wider, wider, wideRows, nil, 0},
		"another type does not evolve":          {spec.Contract{Types: spec.Evolve}, other, nil, "which is not wider", "", "", nil, nil, 0},
		"values of another type are discarded":  {spec.Contract{Types: spec.DiscardValue}, other, textRows, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":1,"n":null,"s":"a"}`, `{"id":2,"n":2,"s":"b"}`}, nil, 0},
		"rows of another type are discarded":    {spec.Contract{Types: spec.DiscardRow}, other, textRows, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":2,"n":2,"s":"b"}`}, nil, 1},
		"rows of another type are quarantined":  {spec.Contract{Types: spec.Quarantine}, wider, wideRows, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", []string{`{"id":2,"n":2,"s":"b"}`}, []int{0}, 0},
		"a type that nothing can be made of":    {spec.Contract{Types: spec.Quarantine}, "id:int64 n:date s:text", nil, "which none of its values can become again", "", "", nil, nil, 0},
		"a new column and a type, each its way": {spec.Contract{Columns: spec.DiscardValue, Types: spec.Evolve}, "id:int64 n:int64 s:text x:text", []string{`{"id":1,"n":5000000000,"s":"a","x":"y"}`}, "", wider, wider, []string{`{"id":1,"n":5000000000,"s":"a"}`}, nil, 0},
		"rows that show two changes count once": {spec.Contract{Columns: spec.DiscardRow, Types: spec.DiscardRow}, "id:int64 n:text s:text x:text", []string{`{"id":1,"n":"z","s":"a","x":"y"}`}, "", "id:int64 n:int32 s:text", "id:int64 n:int32 s:text", nil, nil, 1},
		"another order of columns is no change": {spec.Contract{Columns: spec.Freeze}, "s:text n:int32 id:int64", []string{`{"s":"a","n":1,"id":1}`}, "", "s:text n:int32 id:int64", "id:int64 n:int32 s:text", []string{`{"s":"a","n":1,"id":1}`}, nil, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			actual := schema(tt.actual, "id")
			a, err := transform.Agree(expected, actual, tt.contract)
			if tt.stop != "" {
				if athena.CodeOf(err) != athena.CodeSchemaChanged || !strings.Contains(err.Error(), tt.stop) {
					t.Errorf("got %v, want %s", err, tt.stop)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var rejected []int
			b, dropped := a.Apply(batch(t, actual, tt.rows...), func(row int, _ *transform.RowError) { rejected = append(rejected, row) })
			if got := columns(a.Out); got != tt.out || !b.Schema.Equal(a.Out) {
				t.Errorf("what goes on has %s, not %s", got, tt.out)
			}
			if got := columns(a.Expected); got != tt.expects {
				t.Errorf("from now on %s is expected, not %s", got, tt.expects)
			}
			if got := lines([]transform.Part{{Batch: b}}); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if !slices.Equal(rejected, tt.rejected) || dropped != tt.dropped {
				t.Errorf("rejected %v, dropped %d", rejected, dropped)
			}
			if quiet := a.String() == ""; quiet != (tt.actual == columns(expected) || strings.Contains(name, "gone") || strings.Contains(name, "narrower") || strings.Contains(name, "order")) {
				t.Errorf("the news are %q", a)
			}
		})
	}
}

// A delete has no values that could be against the contract.
func TestAContractLetsDeletesThrough(t *testing.T) {
	t.Parallel()
	actual := schema("id:int64 n:text x:text", "id")
	a, err := transform.Agree(schema("id:int64 n:int32", "id"), actual, spec.Contract{Columns: spec.Quarantine, Types: spec.Quarantine})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := a.Apply(changes(t, actual, `delete {"id":1}`, `insert {"id":2,"n":"x"}`), func(int, *transform.RowError) {})
	if got := lines([]transform.Part{{Batch: b}}); !slices.Equal(got, []string{`delete {"id":1}`}) {
		t.Error(got)
	}
}
