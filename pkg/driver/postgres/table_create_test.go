package postgres

import (
	"testing"

	"github.com/athena-pipelines/athena/pkg/record"
)

func TestNewColumnsTakeTheValuesThatAreToCome(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		column record.Column
		want   string
	}{
		"a size that is told is kept":                   {record.Column{Type: record.TypeText, Native: "character(2)"}, "character(2)"},
		"a name without its size takes texts of any":    {record.Column{Type: record.TypeText, Native: "character"}, "text"},
		"and so do bits":                                {record.Column{Type: record.TypeText, Native: "bit"}, "text"},
		"what has no size means all":                    {record.Column{Type: record.TypeText, Native: "character varying"}, "character varying"},
		"a type that is not built in is that of values": {record.Column{Type: record.TypeText, Native: "order_status"}, "text"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := nativeType(tt.column); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}
