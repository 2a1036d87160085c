package postgres

import "testing"

func TestPlaceOfASnapshot(t *testing.T) {
	t.Parallel()
	seen := xidSnapshot{open: []uint64{5}, next: 9}
	for _, tt := range []struct {
		lsn  uint64
		xid  uint32
		want passage
	}{
		{10, 4, passes}, {10, 5, unknown}, {10, 9, unknown}, {100, 4, behind}, {100, 9, behind}, {10, 4294967295, passes},
	} {
		var g gate
		if got := g.judge(tt.lsn, tt.xid); got != passes {
			t.Errorf("an open gate: %d", got)
		}
		g.pass(10)
		g.close(seen, 100)
		if here, _ := g.here(); here {
			t.Error("it is reached before what comes before it")
		}
		if got := g.judge(tt.lsn, tt.xid); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
	var g gate
	g.close(seen, 100)
	if !g.pass(100) {
		t.Error("it is not reached")
	}
	if here, spoiled := g.here(); !here || spoiled {
		t.Errorf("%v, %v", here, spoiled)
	}
	g.decide(false)
	if here, spoiled := g.here(); here || !spoiled || g.pass(200) {
		t.Errorf("%v, %v", here, spoiled)
	}
	g.close(seen, 100)
	if here, _ := g.here(); !here { // nothing came in between
		t.Error("it is not reached")
	}
}
