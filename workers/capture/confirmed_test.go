package capture

import (
	"testing"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
)

func TestTheMarkOfAnEarlierCaptureSaysNothing(t *testing.T) {
	t.Parallel()
	begin := cdc.Position("B.0")
	tests := map[string]struct {
		end  changefeed.End
		own  string
		want string
	}{
		"an empty stream":                       {changefeed.End{}, "5", "5"},
		"the end is an earlier capture's":       {changefeed.End{Pos: "A.9", Mark: "7"}, "5", "5"},
		"the end is a row of its snapshot":      {changefeed.End{Pos: begin.Read(1), Mark: "5"}, "5", "5"},
		"the end is its own":                    {changefeed.End{Pos: "B.3", Mark: "7"}, "5", "7"},
		"more was confirmed without the stream": {changefeed.End{Pos: "B.3", Mark: "7"}, "8", "8"},
	}
	for name, tt := range tests {
		if got := confirmedAt(tt.end, changefeed.Origin{Begin: begin, Confirmed: tt.own}); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}
