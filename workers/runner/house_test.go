package runner

import "testing"

func TestUploadsOfOthersAreNotOurs(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"01a21c66-18a4-7191-8958-5c675ef085b9-000001-0.parquet":                              true,
		"01a21c66-18a4-7191-8958-5c675ef085b9-0.ndjson.gz":                                   true,
		"4StVx9y2eE7QiLiDTJoEBA-000000000001-0000000001DDF470.00000000r0000000FA1-3.csv.zst": true,
		"backup-2026-11-27.parquet":                                                          false,
		"01a21c66-18a4-7191-8958-5c675ef085b9":                                               false,
		"01a21c66-18a4-7191-8958-5c675ef085b9-dump.tar":                                      false,
		"video.mp4": false,
	} {
		if got := ours.MatchString(name); got != want {
			t.Errorf("%s: ours is %t", name, got)
		}
	}
}
