package driver_test

import (
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestKeysLeadNowhereElse(t *testing.T) {
	t.Parallel()
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{"", ".", "..", "...", "/", "//", "%2e", "%2F", "%", "\\", "a", "b c", "ü", "日本", "\x00", "\n", "\x7f", "\xff", "\uffff", "~", "+", "?", "#", "&"}),
		rapid.String())
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.SampledFrom([]string{"", "lake/", "a/b/"}).Draw(t, "prefix")
		key := strings.Join(rapid.SliceOfN(piece, 0, 6).Draw(t, "pieces"), rapid.SampledFrom([]string{"", "/"}).Draw(t, "between"))
		name, err := driver.CleanKey(prefix, key)
		if err != nil {
			if e := athena.AsError(err); e.Code != athena.CodeInvalidRequest || e.Details["field"] != "key" || !utf8.ValidString(e.Message) {
				t.Fatalf("%q is refused with %v %v", key, err, e.Details)
			}
			return
		}
		if name != prefix+key || len(name) > driver.MaxKey || key == "" || !utf8.ValidString(name) {
			t.Fatalf("%q below %q is %q", key, prefix, name)
		}
		// What a file system or a proxy makes of it is the same name.
		if made := path.Clean("/" + name); made != "/"+strings.TrimSuffix(name, "/") || strings.ContainsAny(name, "\x00\r\n\t\x7f") {
			t.Fatalf("%q is another name, %q, once it is cleaned", name, made)
		}
		if _, err := driver.CleanPrefix(prefix, key); err != nil {
			t.Fatalf("%q is a key and no prefix of keys: %v", key, err)
		}
	})
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"a", "a/b.parquet", "day=2026-11-27/part-0.parquet", "a/", ".hidden", "..x/y", "a..", "%2e%2e/x", "a b+c&d?e#f", "日本/ü", strings.Repeat("k", 1019)} {
		if name, err := driver.CleanKey("lake/", key); err != nil || name != "lake/"+key {
			t.Errorf("%q: %q, %v", key, name, err)
		}
	}
	for _, key := range []string{"", "/", "/a", "..", ".", "../a", "a/..", "a/../b", "a/./b", "a//b", "a//", "./a", "a\x00", "a\nb", "\x1f", "\x7f", "a\u0085", "\xff", "a\ufffe", strings.Repeat("k", 1020)} {
		if name, err := driver.CleanKey("lake/", key); athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("%q was taken as %q, %v", key, name, err)
		}
	}
	if name, err := driver.CleanPrefix("lake/", ""); err != nil || name != "lake/" {
		t.Errorf("no prefix is %q, %v", name, err)
	}
}
