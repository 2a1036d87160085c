package drivertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Objects is what the suite must know of a store of objects.
type Objects struct {
	// Part is the most bytes that the driver sends in one request.
	Part int
	// Seed puts an object where no key of the backend's leads: outside of its
	// prefix. It is named by its name in the bucket.
	Seed func(t *testing.T, name string, body []byte)
	// What the server at the other end cannot do. The suite does not look away:
	// it checks that it is so.
	Lacks Lacks
}

// Lacks are the ways in which some servers fall short of S3.
type Lacks struct {
	// Conditions says that of several who write at once on a condition, several
	// may be told that it held.
	Conditions bool
	// Signatures says that requests are not checked, so that a presigned URL may
	// be altered.
	Signatures bool
	// ETags says that the writer of an object in parts is told another ETag than
	// its readers.
	ETags bool
	// Metadata says that an object keeps the metadata of one that it replaced.
	Metadata bool
	// Prefixes says that a folded prefix is listed on several pages.
	Prefixes bool
	// EmptyStages says that an object without bytes cannot be staged.
	EmptyStages bool
	// Folders says that "a" and "a/b" cannot both be, and that an object whose key
	// ends in "/" has no bytes.
	Folders bool
}

func (s *suite) objects(t *testing.T) {
	o := &objects{suite: s, r: s.b.(driver.ObjectReader)}
	o.w, _ = s.b.(driver.ObjectWriter)
	o.s, _ = s.b.(driver.ObjectStager)
	if o.w == nil || o.s == nil || s.Harness.Objects == nil {
		t.Fatal("the suite needs a writer to have something to read, and the harness's Objects")
	}
	o.has = *s.Harness.Objects
	t.Run("round trips", o.roundTrips)
	t.Run("keys", o.keys)
	t.Run("keys that are none", o.badKeys)
	t.Run("listing", o.listing)
	t.Run("ranges", o.ranges)
	t.Run("conditions", o.conditions)
	t.Run("copies", o.copies)
	t.Run("deletion", o.deletion)
	t.Run("staging", o.staging)
	t.Run("bodies that break", o.broken)
	t.Run("presigned", o.presigned)
	t.Run("what is not there", o.missing)
	t.Run("many at once", o.concurrent)
}

// objects is the part of the suite about objects.
type objects struct {
	*suite
	has Objects
	r   driver.ObjectReader
	w   driver.ObjectWriter
	s   driver.ObjectStager
}

var folders atomic.Int64

// folder is a prefix for one test, without a slash at its end.
func folder() string { return fmt.Sprintf("dt%d-%d", folders.Add(1), time.Now().UnixNano()) }

// noise is reproducible and does not repeat itself.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte("drivertest"))).Read(b)
	return b
}

func (o *objects) write(t *testing.T, key string, body []byte, w driver.ObjectWrite) driver.Object {
	t.Helper()
	got, err := o.w.WriteObject(t.Context(), key, bytes.NewReader(body), w)
	if err != nil {
		t.Fatalf("WriteObject(%q): %v", key, err)
	}
	if got.Key != key || got.Bytes != int64(len(body)) || got.ETag == "" {
		t.Errorf("WriteObject(%q) of %d bytes = %+v", key, len(body), got)
	}
	return got
}

func (o *objects) read(t *testing.T, key string, r driver.ObjectRead) ([]byte, driver.ObjectBody) {
	t.Helper()
	body, err := o.other.(driver.ObjectReader).ReadObject(t.Context(), key, r)
	if err != nil {
		t.Fatalf("ReadObject(%q, %+v): %v", key, r, err)
	}
	raw, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		t.Fatalf("reading %q: %v", key, err)
	}
	return raw, body
}

func (o *objects) wantBody(t *testing.T, key string, want []byte) {
	t.Helper()
	if got, _ := o.read(t, key, driver.ObjectRead{}); !bytes.Equal(got, want) {
		t.Errorf("%q holds %d bytes, want %d; or they differ", key, len(got), len(want))
	}
}

// list reads all pages and checks their order.
func (o *objects) list(t *testing.T, l driver.ObjectList) (keys, prefixes []string) {
	t.Helper()
	for pages := 0; ; pages++ {
		page, err := o.r.Objects(t.Context(), l)
		if err != nil || page.Objects == nil || pages > 3000 {
			t.Fatalf("Objects(%+v), page %d: %+v, %v", l, pages, page, err)
		}
		if n := len(page.Objects) + len(page.Prefixes); l.Limit > 0 && n > l.Limit {
			t.Errorf("a page of %d has %d", l.Limit, n)
		}
		for _, found := range page.Objects {
			keys = append(keys, found.Key)
		}
		prefixes = append(prefixes, page.Prefixes...)
		if page.Next == "" {
			break
		}
		l.After = page.Next
	}
	if !slices.IsSorted(keys) || !slices.IsSorted(prefixes) {
		t.Errorf("the keys do not come in the order of their bytes: %q %q", keys, prefixes)
	}
	return keys, prefixes
}

func (o *objects) wantKeys(t *testing.T, prefix string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got, _ := o.list(t, driver.ObjectList{Prefix: prefix}); !slices.Equal(got, want) {
		t.Errorf("below %q there are %q, want %q", prefix, got, want)
	}
}

func (o *objects) roundTrips(t *testing.T) {
	in := folder() + "/"
	for _, size := range []int{0, 1, 1000, 300 << 10, o.has.Part - 1, o.has.Part, o.has.Part + 1, 3*o.has.Part + 17} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("of %d bytes, told before: %v", size, known), func(t *testing.T) {
				key, body := fmt.Sprintf("%s%d-%v", in, size, known), noise(size)
				w := driver.ObjectWrite{ContentType: "application/x-test; v=1", Metadata: map[string]string{"Team-1": "lake house", "b": "c=d;e"}}
				if known {
					w.Bytes = int64(size)
				}
				wrote := o.write(t, key, body, w)
				raw, got := o.read(t, key, driver.ObjectRead{})
				if !bytes.Equal(raw, body) || got.From != 0 || got.To != int64(size) {
					t.Errorf("%d bytes were read, from %d to %d; or they differ", len(raw), got.From, got.To)
				}
				head, err := o.r.Object(t.Context(), key)
				if err != nil {
					t.Fatal(err)
				}
				page, err := o.r.Objects(t.Context(), driver.ObjectList{Prefix: key, Limit: 1})
				if err != nil || len(page.Objects) != 1 {
					t.Fatalf("%+v, %v", page, err)
				}
				for what, seen := range map[string]driver.Object{"a read": got.Object, "a look": head, "a listing": page.Objects[0]} {
					sameTag := seen.ETag == wrote.ETag || o.has.Lacks.ETags && size >= o.has.Part
					if seen.Key != key || seen.Bytes != int64(size) || !sameTag || seen.Modified.IsZero() || time.Since(seen.Modified).Abs() > time.Hour {
						t.Errorf("%s shows %+v, and the writer was told %+v", what, seen, wrote)
					}
					if what == "a listing" {
						continue
					}
					if seen.ContentType != w.ContentType || len(seen.Metadata) != 2 || seen.Metadata["team-1"] != "lake house" || seen.Metadata["b"] != "c=d;e" {
						t.Errorf("%s shows the content type %q and the metadata %v", what, seen.ContentType, seen.Metadata)
					}
				}
			})
		}
	}
	t.Run("the last writer wins", func(t *testing.T) {
		o.write(t, in+"again", []byte("first"), driver.ObjectWrite{Metadata: map[string]string{"old": "1"}})
		o.write(t, in+"again", []byte("second"), driver.ObjectWrite{})
		raw, got := o.read(t, in+"again", driver.ObjectRead{})
		if string(raw) != "second" || (len(got.Metadata) != 0) != o.has.Lacks.Metadata {
			t.Errorf("it holds %q, %v", raw, got.Metadata)
		}
	})
	t.Run("an object may be named like a folder", func(t *testing.T) {
		o.write(t, in+"both", []byte("object"), driver.ObjectWrite{})
		_, below := o.w.WriteObject(t.Context(), in+"both/below", strings.NewReader("below"), driver.ObjectWrite{})
		_, mark := o.w.WriteObject(t.Context(), in+"mark/", strings.NewReader("mark"), driver.ObjectWrite{})
		if o.has.Lacks.Folders {
			for _, err := range []error{below, mark} {
				if err == nil || o.failure(t, o.b, err).Code == "" {
					t.Errorf("%v, want a refusal with a code", err)
				}
			}
			return
		}
		if err := errors.Join(below, mark); err != nil {
			t.Fatal(err)
		}
		o.wantBody(t, in+"both", []byte("object"))
		o.wantBody(t, in+"both/below", []byte("below"))
		o.wantBody(t, in+"mark/", []byte("mark"))
	})
	t.Run("another length than was told is refused", func(t *testing.T) {
		for _, size := range []int{5, 2*o.has.Part + 5} {
			_, err := o.w.WriteObject(t.Context(), in+"short", bytes.NewReader(noise(size)), driver.ObjectWrite{Bytes: int64(size) + 1})
			o.wantField(t, err, "body")
			o.wantCode(t, second(o.r.Object(t.Context(), in+"short")), athena.CodeNotFound)
		}
	})
	for field, w := range map[string]driver.ObjectWrite{
		"metadata.a b":      {Metadata: map[string]string{"a b": "c"}},
		"metadata.a":        {Metadata: map[string]string{"a": "ü"}},
		"metadata.c":        {Metadata: map[string]string{"c": "d\r\nX-Evil: 1"}},
		"metadata.athena-x": {Metadata: map[string]string{"athena-x": "1"}},
		"metadata":          {Metadata: map[string]string{"large": strings.Repeat("x", driver.MaxMetadata)}},
		"content_type":      {ContentType: "text/plain\n"},
		"if_match":          {IfMatch: "a", IfNoneMatch: true},
	} {
		t.Run("a bad "+field+" is refused", func(t *testing.T) {
			o.wantField(t, second(o.w.WriteObject(t.Context(), in+"bad", strings.NewReader("x"), w)), field)
		})
	}
}

// second is the error of two results.
func second[T any](_ T, err error) error { return err }

func (o *objects) keys(t *testing.T) {
	in := folder() + "/"
	keys := []string{
		"plain", "a b", "a+b", "a%20b", "a%2Fb", "%", "%zz", "%2e%2e", "q?x=1&y=2", "h#h", "semi;colon", "eq=1/part-0.parquet", "at@sign", "dollar$", "comma,",
		"tilde~", "quote'", "double\"", "<tag>&amp;", "star*", "paren(1)", "[b]", "{c}", "pipe|", "caret^", "back`tick", "back\\slash", "colon:",
		"ümlaut", "日本語/キー", "emoji-🙂", "combining-e\u0301", "composed-\u00e9", ".hidden", "..x", "x..", "...", "-dash", "UPPER", "upper", "deep/er/and/deep/er",
		strings.Repeat("n", 200) + "/" + strings.Repeat("m", 200), "trailing.", "a\u200bb", " leading", "trailing ",
	}
	kept := []string{}
	for _, key := range keys {
		body := []byte("of " + key)
		_, err := o.w.WriteObject(t.Context(), in+key, bytes.NewReader(body), driver.ObjectWrite{})
		if err != nil {
			t.Errorf("WriteObject(%q): %v", key, err)
			continue
		}
		kept = append(kept, in+key)
		o.wantBody(t, in+key, body)
		if got, err := o.r.Object(t.Context(), in+key); err != nil || got.Key != in+key {
			t.Errorf("Object(%q) = %+v, %v", key, got, err)
		}
		if _, err := o.w.CopyObject(t.Context(), in+key, in+"copy", driver.ObjectWrite{}); err != nil {
			t.Errorf("CopyObject(%q): %v", key, err)
		}
		o.wantBody(t, in+"copy", body)
	}
	if err := o.w.DeleteObjects(t.Context(), in+"copy"); err != nil {
		t.Fatal(err)
	}
	o.wantKeys(t, in, kept...)
	if err := o.w.DeleteObjects(t.Context(), kept...); err != nil {
		t.Fatalf("DeleteObjects: %v", err)
	}
	o.wantKeys(t, in)
}

func (o *objects) badKeys(t *testing.T) {
	if o.has.Seed != nil {
		o.has.Seed(t, "outside", []byte("not yours"))
	}
	bad := []string{
		"", "/", "/outside", "..", "../outside", "a/../../outside", "a/..", ".", "./a", "a/./b", "a//b", "//a", "a\x00b", "a\nb", "a\tb", "\x7f", "\xff\xfe", "a\uffff",
		strings.Repeat("k", driver.MaxKey+1),
	}
	for _, key := range bad {
		for what, err := range map[string]error{
			"Object":       second(o.r.Object(t.Context(), key)),
			"ReadObject":   second(o.r.ReadObject(t.Context(), key, driver.ObjectRead{})),
			"WriteObject":  second(o.w.WriteObject(t.Context(), key, strings.NewReader("x"), driver.ObjectWrite{})),
			"DeleteObject": o.w.DeleteObjects(t.Context(), key),
			"PresignRead":  second(o.r.PresignRead(t.Context(), key, time.Minute)),
			"PresignWrite": second(o.w.PresignWrite(t.Context(), key, time.Minute, driver.ObjectWrite{})),
			"StageObject":  second(o.s.StageObject(t.Context(), key, driver.ObjectWrite{})),
			"Publish":      second(o.s.PublishObject(t.Context(), driver.StagedObject{Key: key, ID: "upload:u", Mark: "m", Parts: []string{"x"}})),
			"Discard":      o.s.DiscardObject(t.Context(), driver.StagedObject{Key: key, ID: "upload:u"}),
		} {
			if err == nil {
				t.Errorf("%s takes the key %q", what, key)
				continue
			}
			o.wantField(t, err, "key")
		}
		o.wantField(t, second(o.w.CopyObject(t.Context(), key, "b", driver.ObjectWrite{})), "from")
		o.wantField(t, second(o.w.CopyObject(t.Context(), "b", key, driver.ObjectWrite{})), "to")
		if key != "" {
			o.wantField(t, second(o.r.Objects(t.Context(), driver.ObjectList{Prefix: key})), "prefix")
			o.wantField(t, second(o.s.StagedObjects(t.Context(), key, time.Now())), "prefix")
		}
	}
	// What looks like an escape is a name, and another object than the one outside.
	for _, key := range []string{"%2e%2e/outside", "..%2foutside", "outside"} {
		o.wantCode(t, second(o.r.Object(t.Context(), key)), athena.CodeNotFound)
	}
	keys, _ := o.list(t, driver.ObjectList{})
	for _, key := range keys {
		if strings.Contains(key, "outside") {
			t.Errorf("a listing shows %q", key)
		}
	}
}

func (o *objects) listing(t *testing.T) {
	in := folder() + "/"
	want := []string{}
	for _, key := range []string{"a", "b/1", "b/2", "b/c/3", "b-1", "b.", "b0", "c/d/e/f", "z"} {
		o.write(t, in+key, []byte(key), driver.ObjectWrite{})
		want = append(want, in+key)
	}
	slices.Sort(want)
	for _, limit := range []int{0, 1, 2, 3, 4, 9, 1000} {
		if keys, prefixes := o.list(t, driver.ObjectList{Prefix: in, Limit: limit}); !slices.Equal(keys, want) || len(prefixes) > 0 {
			t.Errorf("pages of %d have %q and %q, want %q", limit, keys, prefixes, want)
		}
		keys, prefixes := o.list(t, driver.ObjectList{Prefix: in, Delimiter: "/", Limit: limit})
		if o.has.Lacks.Prefixes {
			prefixes = slices.Compact(prefixes)
		}
		if !slices.Equal(keys, []string{in + "a", in + "b-1", in + "b.", in + "b0", in + "z"}) || !slices.Equal(prefixes, []string{in + "b/", in + "c/"}) {
			t.Errorf("pages of %d with a delimiter have %q and %q", limit, keys, prefixes)
		}
	}
	for prefix, n := range map[string]int{"b": 6, "b/": 3, "b/c": 1, "b/c/": 1, "a": 1, "y": 0, "c/d/e": 1} {
		if keys, _ := o.list(t, driver.ObjectList{Prefix: in + prefix}); len(keys) != n {
			t.Errorf("below %q there are %q, want %d", prefix, keys, n)
		}
	}
	keys, prefixes := o.list(t, driver.ObjectList{Prefix: in + "b/", Delimiter: "/"})
	if !slices.Equal(keys, []string{in + "b/1", in + "b/2"}) || !slices.Equal(prefixes, []string{in + "b/c/"}) {
		t.Errorf("the folder b has %q and %q", keys, prefixes)
	}
	t.Run("a limit that is none is refused", func(t *testing.T) {
		for _, limit := range []int{-1, 1001} {
			o.wantField(t, second(o.r.Objects(t.Context(), driver.ObjectList{Limit: limit})), "limit")
		}
	})
}

func (o *objects) ranges(t *testing.T) {
	in := folder() + "/"
	for _, size := range []int{0, 1, 10, 2*o.has.Part + 5} {
		body, key, n := noise(size), fmt.Sprintf("%s%d", in, size), int64(size)
		o.write(t, key, body, driver.ObjectWrite{})
		for _, r := range []driver.ObjectRead{
			{}, {From: 0, To: 1}, {From: 0, To: n}, {From: 0, To: n + 5}, {From: 1}, {From: 3, To: 7}, {From: n - 1}, {From: n}, {From: n + 1}, {From: n, To: n + 1},
			{From: -1}, {From: -3}, {From: -n - 5}, {From: 5, To: 5}, {From: 5, To: 2}, {From: -5, To: 2}, {From: 2, To: -1}, {From: n / 2, To: n - 1},
		} {
			from, to, wantErr := r.Window(n)
			got, err := o.r.ReadObject(t.Context(), key, r)
			if wantErr != nil {
				if err == nil {
					_ = got.Close()
				}
				o.wantField(t, err, "range")
				continue
			}
			if err != nil {
				t.Errorf("%+v of %d bytes: %v", r, size, err)
				continue
			}
			raw, err := io.ReadAll(got)
			if err := errors.Join(err, got.Close()); err != nil || got.From != from || got.To != to || got.Bytes != n || !bytes.Equal(raw, body[from:to]) {
				t.Errorf("%+v of %d bytes gave %d bytes, from %d to %d of %d, %v; want from %d to %d", r, size, len(raw), got.From, got.To, got.Bytes, err, from, to)
			}
		}
	}
	t.Run("what is not read to its end can be closed", func(t *testing.T) {
		got, err := o.r.ReadObject(t.Context(), fmt.Sprintf("%s%d", in, 2*o.has.Part+5), driver.ObjectRead{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(got, make([]byte, 100)); err != nil {
			t.Error(err)
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
		if _, err := got.Read(make([]byte, 1)); err == nil {
			t.Error("a closed body is read")
		}
	})
}

func (o *objects) conditions(t *testing.T) {
	in := folder() + "/"
	for name, size := range map[string]int{"small": 10, "large": 2*o.has.Part + 5} {
		t.Run(name, func(t *testing.T) {
			key, body := in+name, noise(size)
			ctx := t.Context()
			put := func(w driver.ObjectWrite, body []byte) (driver.Object, error) {
				return o.w.WriteObject(ctx, key, bytes.NewReader(body), w)
			}
			o.wantCode(t, second(put(driver.ObjectWrite{IfMatch: "0123456789abcdef0123456789abcdef"}, body)), athena.CodeConflict)
			if _, err := put(driver.ObjectWrite{IfNoneMatch: true, Metadata: map[string]string{"a": "b"}}, body); err != nil {
				t.Fatalf("the first: %v", err)
			}
			first, err := o.r.Object(ctx, key)
			if err != nil || len(first.Metadata) != 1 {
				t.Fatalf("%+v, %v; want the metadata that was given", first, err)
			}
			o.wantCode(t, second(put(driver.ObjectWrite{IfNoneMatch: true}, []byte("second"))), athena.CodeConflict)
			o.wantCode(t, second(put(driver.ObjectWrite{IfMatch: "0123456789abcdef0123456789abcdef"}, []byte("second"))), athena.CodeConflict)
			o.wantBody(t, key, body)
			if _, err := put(driver.ObjectWrite{IfMatch: first.ETag}, append(body, "more"...)); err != nil {
				t.Fatalf("with the ETag that it has: %v", err)
			}
			o.wantCode(t, second(put(driver.ObjectWrite{IfMatch: first.ETag}, []byte("third"))), athena.CodeConflict)
			o.wantBody(t, key, append(body, "more"...))
			now, err := o.r.Object(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			if raw, _ := o.read(t, key, driver.ObjectRead{IfMatch: now.ETag, From: -4}); string(raw) != "more" {
				t.Errorf("it ends in %q", raw)
			}
			o.wantCode(t, second(o.r.ReadObject(ctx, key, driver.ObjectRead{IfMatch: first.ETag})), athena.CodeConflict)

			// Several at once.
			var wins atomic.Int32
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					_, err := o.w.WriteObject(ctx, key+"-race", bytes.NewReader(noise(size+i)), driver.ObjectWrite{IfNoneMatch: true})
					switch {
					case err == nil:
						wins.Add(1)
					case o.failure(t, o.b, err).Code != athena.CodeConflict:
						t.Errorf("the loser of a race got %v", err)
					}
				})
			}
			wg.Wait()
			if n := wins.Load(); n != 1 && !(o.has.Lacks.Conditions && n > 0) {
				t.Errorf("%d of 4 writers were the first", n)
			}
			o.wantStaged(t, in)
		})
	}
	o.wantField(t, second(o.s.StageObject(t.Context(), in+"x", driver.ObjectWrite{IfNoneMatch: true})), "if_match")
}

func (o *objects) copies(t *testing.T) {
	in := folder() + "/"
	w := driver.ObjectWrite{ContentType: "text/x-copy", Metadata: map[string]string{"a": "1", "b": "2"}}
	for name, size := range map[string]int{"small": 10, "large": 2*o.has.Part + 5} {
		from, to, body := in+name, in+name+"-to/ü", noise(size)
		o.write(t, from, body, w)
		got, err := o.w.CopyObject(t.Context(), from, to, driver.ObjectWrite{})
		if err != nil || got.Key != to || got.Bytes != int64(size) || got.ETag == "" {
			t.Fatalf("CopyObject = %+v, %v", got, err)
		}
		o.wantBody(t, to, body)
		if seen, err := o.r.Object(t.Context(), to); err != nil || seen.ContentType != w.ContentType || len(seen.Metadata) != 2 || seen.Metadata["a"] != "1" {
			t.Errorf("the copy is %+v, %v", seen, err)
		}
		if _, err := o.w.CopyObject(t.Context(), from, to, driver.ObjectWrite{ContentType: "text/y", Metadata: map[string]string{"B": "3"}}); err != nil {
			t.Fatal(err)
		}
		if seen, err := o.r.Object(t.Context(), to); err != nil || seen.ContentType != "text/y" || len(seen.Metadata) != 2 || seen.Metadata["a"] != "1" || seen.Metadata["b"] != "3" {
			t.Errorf("the changed copy is %+v, %v", seen, err)
		}
		o.wantCode(t, second(o.w.CopyObject(t.Context(), from, to, driver.ObjectWrite{IfNoneMatch: true})), athena.CodeConflict)
		o.wantCode(t, second(o.w.CopyObject(t.Context(), from, to, driver.ObjectWrite{IfMatch: "0123456789abcdef0123456789abcdef"})), athena.CodeConflict)
		if _, err := o.w.CopyObject(t.Context(), from, to+"-new", driver.ObjectWrite{IfNoneMatch: true}); err != nil {
			t.Errorf("a copy to where nothing is: %v", err)
		}
		// Onto itself.
		if _, err := o.w.CopyObject(t.Context(), from, from, driver.ObjectWrite{}); err != nil {
			t.Errorf("a copy onto itself: %v", err)
		}
		if _, err := o.w.CopyObject(t.Context(), from, from, driver.ObjectWrite{Metadata: map[string]string{"c": "4"}}); err != nil {
			t.Errorf("a copy onto itself with other metadata: %v", err)
		}
		if seen, err := o.r.Object(t.Context(), from); err != nil || seen.Metadata["c"] != "4" || seen.Metadata["a"] != "1" {
			t.Errorf("it is %+v, %v", seen, err)
		}
		o.wantBody(t, from, body)
	}
	f := o.wantCode(t, second(o.w.CopyObject(t.Context(), in+"nothing", in+"x", driver.ObjectWrite{})), athena.CodeNotFound)
	if f.Details["field"] != "from" {
		t.Errorf("the field is %v", f.Details["field"])
	}
}

func (o *objects) deletion(t *testing.T) {
	in := folder() + "/"
	keys := []string{}
	for i := range 12 {
		keys = append(keys, fmt.Sprintf("%sk %d/ü&<", in, i))
		o.write(t, keys[i], []byte("x"), driver.ObjectWrite{})
	}
	if err := o.w.DeleteObjects(t.Context()); err != nil {
		t.Errorf("none: %v", err)
	}
	if err := o.w.DeleteObjects(t.Context(), keys[0]); err != nil {
		t.Errorf("one: %v", err)
	}
	if err := o.w.DeleteObjects(t.Context(), keys[0]); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
	o.wantKeys(t, in, keys[1:]...)
	many := slices.Clone(keys[:11])
	for i := range 1500 { // more than one request takes
		many = append(many, fmt.Sprintf("%snothing-%d", in, i))
	}
	if err := o.w.DeleteObjects(t.Context(), many...); err != nil {
		t.Errorf("many: %v", err)
	}
	o.wantKeys(t, in, keys[11])
	o.wantField(t, o.w.DeleteObjects(t.Context(), keys[11], "../x"), "key")
	o.wantKeys(t, in, keys[11])
}

// wantStaged checks what is staged below a prefix.
func (o *objects) wantStaged(t *testing.T, prefix string, want ...string) []driver.StagedObject {
	t.Helper()
	list, err := o.s.StagedObjects(t.Context(), prefix, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatalf("StagedObjects: %v", err)
	}
	keys := []string{}
	for _, s := range list {
		keys = append(keys, s.Key)
		if s.ID == "" || s.Begun.IsZero() || time.Since(s.Begun).Abs() > time.Hour {
			t.Errorf("StagedObjects shows %+v", s)
		}
	}
	slices.Sort(keys)
	slices.Sort(want)
	if !slices.Equal(keys, want) {
		t.Errorf("%q are staged below %q, want %q", keys, prefix, want)
	}
	return list
}

func (o *objects) stage(t *testing.T, key string, body []byte, w driver.ObjectWrite) (driver.ObjectStage, driver.StagedObject) {
	t.Helper()
	stage, err := o.s.StageObject(t.Context(), key, w)
	if err != nil {
		t.Fatalf("StageObject(%q): %v", key, err)
	}
	for rest := body; len(rest) > 0; {
		n := min(len(rest), 100_001)
		if m, err := stage.Write(rest[:n]); m != n || err != nil {
			t.Fatalf("Write of %d = %d, %v", n, m, err)
		}
		rest = rest[n:]
	}
	staged, err := stage.Stage(t.Context())
	if err != nil || staged.Key != key || staged.Bytes != int64(len(body)) || staged.ID == "" {
		t.Fatalf("Stage = %+v, %v", staged, err)
	}
	return stage, staged
}

func (o *objects) staging(t *testing.T) {
	ctx := t.Context()
	for _, size := range []int{0, 10, o.has.Part, 3*o.has.Part + 17} {
		t.Run(fmt.Sprintf("%d bytes appear when they are published", size), func(t *testing.T) {
			in := folder() + "/"
			key, body := in+"a b/ü", noise(size)
			o.write(t, key, []byte("before"), driver.ObjectWrite{})
			if size == 0 && o.has.Lacks.EmptyStages {
				stage, err := o.s.StageObject(ctx, key, driver.ObjectWrite{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := stage.Stage(ctx); err == nil || o.failure(t, o.b, err).Code == "" {
					t.Errorf("%v, want a refusal with a code", err)
				}
				if err := stage.Discard(ctx); err != nil {
					t.Error(err)
				}
				return
			}
			stage, staged := o.stage(t, key, body, driver.ObjectWrite{ContentType: "text/s", Metadata: map[string]string{"m": "1"}})
			o.wantBody(t, key, []byte("before"))
			if list := o.wantStaged(t, in, key); len(list) == 1 && list[0].ID != staged.ID {
				t.Errorf("what is staged as %q is listed as %q", staged.ID, list[0].ID)
			}
			if again, err := stage.Stage(ctx); err != nil || again.ID != staged.ID {
				t.Errorf("Stage again = %+v, %v", again, err)
			}
			if _, err := stage.Write([]byte("x")); err == nil {
				t.Error("bytes are taken after Stage")
			}
			for range 2 { // the second is of somebody who was not told of the first
				got, err := o.other.(driver.ObjectStager).PublishObject(ctx, staged)
				if err != nil || got.Key != key || got.Bytes != int64(size) || got.ETag == "" {
					t.Fatalf("PublishObject = %+v, %v", got, err)
				}
			}
			o.wantBody(t, key, body)
			if seen, err := o.r.Object(ctx, key); err != nil || seen.ContentType != "text/s" || len(seen.Metadata) != 1 || seen.Metadata["m"] != "1" {
				t.Errorf("the object is %+v, %v", seen, err)
			}
			o.wantStaged(t, in)
			if err := o.s.DiscardObject(ctx, staged); err != nil {
				t.Errorf("to discard what is published: %v", err)
			}
			o.wantBody(t, key, body)
			// What was published before and is replaced by now stays so.
			o.write(t, key, []byte("after"), driver.ObjectWrite{})
			if _, err := o.s.PublishObject(ctx, staged); err != nil {
				o.wantCode(t, err, athena.CodeNotFound)
			}
			o.wantBody(t, key, []byte("after"))
		})
	}
	t.Run("what is discarded is gone", func(t *testing.T) {
		in := folder() + "/"
		stage, staged := o.stage(t, in+"a", noise(o.has.Part+1), driver.ObjectWrite{})
		for range 2 {
			if err := stage.Discard(ctx); err != nil {
				t.Errorf("Discard: %v", err)
			}
			if err := o.s.DiscardObject(ctx, staged); err != nil {
				t.Errorf("DiscardObject: %v", err)
			}
		}
		o.wantStaged(t, in)
		o.wantGone(t, staged)
		o.wantCode(t, second(o.r.Object(ctx, in+"a")), athena.CodeNotFound)
		if _, err := stage.Write([]byte("x")); err == nil {
			t.Error("bytes are taken after Discard")
		}
	})
	t.Run("one that was not finished is found and let go of", func(t *testing.T) {
		in := folder() + "/"
		lost := []driver.ObjectStage{}
		for _, key := range []string{"b/1", "b/1", "b/2 ü", "c"} {
			stage, _ := o.stage(t, in+key, noise(o.has.Part+1), driver.ObjectWrite{})
			lost = append(lost, stage)
		}
		found := o.wantStaged(t, in+"b/", in+"b/1", in+"b/1", in+"b/2 ü")
		if list, err := o.s.StagedObjects(ctx, in, time.Now().Add(-time.Hour)); err != nil || len(list) != 0 {
			t.Errorf("an hour ago %v were staged, %v", list, err)
		}
		o.wantField(t, second(o.s.PublishObject(ctx, found[0])), "id")
		for _, s := range found {
			if err := o.s.DiscardObject(ctx, s); err != nil {
				t.Errorf("DiscardObject: %v", err)
			}
		}
		o.wantStaged(t, in, in+"c")
		for _, stage := range lost {
			if err := stage.Discard(ctx); err != nil {
				t.Errorf("Discard: %v", err)
			}
		}
		o.wantStaged(t, in)
	})
	t.Run("several are staged at once, and one of them under the same key", func(t *testing.T) {
		in := folder() + "/"
		var all [6]driver.StagedObject
		var wg sync.WaitGroup
		for i := range all {
			wg.Go(func() {
				stage, err := o.s.StageObject(ctx, fmt.Sprintf("%s%d", in, i/2), driver.ObjectWrite{})
				if err == nil {
					_, err = stage.Write(noise(o.has.Part + i))
				}
				if err == nil {
					all[i], err = stage.Stage(ctx)
				}
				if err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		for i, s := range all {
			if _, err := o.s.PublishObject(ctx, s); err != nil {
				t.Errorf("PublishObject: %v", err)
			}
			o.wantBody(t, s.Key, noise(o.has.Part+i))
		}
	})
	t.Run("an id of another engine is refused", func(t *testing.T) {
		o.wantField(t, second(o.s.PublishObject(ctx, driver.StagedObject{Key: "k", ID: "strange", Parts: []string{"x"}})), "id")
		o.wantField(t, o.s.DiscardObject(ctx, driver.StagedObject{Key: "k", ID: "strange"}), "id")
	})
}

func (o *objects) wantGone(t *testing.T, s driver.StagedObject) {
	t.Helper()
	o.wantCode(t, second(o.s.PublishObject(t.Context(), s)), athena.CodeNotFound)
}

type breaking struct{ after io.Reader }

var errBroken = errors.New("the source broke")

func (b breaking) Read(p []byte) (int, error) {
	n, err := b.after.Read(p)
	if errors.Is(err, io.EOF) {
		err = errBroken
	}
	return n, err
}

func (o *objects) broken(t *testing.T) {
	in := folder() + "/"
	for name, size := range map[string]int{"small": 10, "large": 2*o.has.Part + 5} {
		o.write(t, in+name, []byte("before"), driver.ObjectWrite{})
		_, err := o.w.WriteObject(t.Context(), in+name, breaking{bytes.NewReader(noise(size))}, driver.ObjectWrite{})
		if o.wantField(t, err, "body"); !errors.Is(err, errBroken) {
			t.Errorf("%s: the cause of %v is lost", name, err)
		}
		o.wantBody(t, in+name, []byte("before"))
		ctx, cancel := context.WithCancel(t.Context())
		_, err = o.w.WriteObject(ctx, in+name, io.MultiReader(bytes.NewReader(noise(size)), cancelling{cancel}, bytes.NewReader(noise(o.has.Part))), driver.ObjectWrite{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled on the way: %v", name, err)
		}
		cancel()
		o.wantBody(t, in+name, []byte("before"))
	}
	o.wantStaged(t, in)
}

type cancelling struct{ cancel func() }

func (c cancelling) Read([]byte) (int, error) {
	c.cancel()
	return 0, io.EOF
}

func (o *objects) presigned(t *testing.T) {
	in := folder() + "/"
	do := func(p driver.Presigned, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), p.Method, p.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range p.Headers {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	key := in + "a b/ü%2F&x"
	w := driver.ObjectWrite{ContentType: "text/p", Metadata: map[string]string{"m": "1"}}
	put, err := o.w.PresignWrite(t.Context(), key, time.Minute, w)
	if err != nil || put.Method != http.MethodPut || time.Until(put.Expires) > time.Minute || time.Until(put.Expires) < 50*time.Second {
		t.Fatalf("PresignWrite = %v, %v", put.Expires, err)
	}
	if status, raw := do(put, "presigned"); status != http.StatusOK {
		t.Fatalf("the PUT: %d %s", status, raw)
	}
	if seen, err := o.r.Object(t.Context(), key); err != nil || seen.ContentType != "text/p" || seen.Metadata["m"] != "1" {
		t.Errorf("the object is %+v, %v", seen, err)
	}
	get, err := o.r.PresignRead(t.Context(), key, time.Minute)
	if err != nil || get.Method != http.MethodGet {
		t.Fatal(err)
	}
	if status, raw := do(get, ""); status != http.StatusOK || raw != "presigned" {
		t.Errorf("the GET: %d %s", status, raw)
	}
	if shown := fmt.Sprintf("%v %+v %s", get, get, get); strings.Contains(shown, "://") {
		t.Errorf("it prints as %s", shown)
	}
	altered := get
	altered.URL = strings.Replace(get.URL, "a%20b", "another", 1)
	if status, _ := do(altered, ""); (status != http.StatusForbidden) != o.has.Lacks.Signatures {
		t.Errorf("a URL that was altered is answered with %d", status)
	}
	for _, expires := range []time.Duration{-time.Second, 0, time.Millisecond, driver.MaxPresign + time.Second} {
		o.wantField(t, second(o.r.PresignRead(t.Context(), key, expires)), "expires")
		o.wantField(t, second(o.w.PresignWrite(t.Context(), key, expires, w)), "expires")
	}
}

func (o *objects) missing(t *testing.T) {
	key := folder() + "/nothing"
	o.wantCode(t, second(o.r.Object(t.Context(), key)), athena.CodeNotFound)
	o.wantCode(t, second(o.r.ReadObject(t.Context(), key, driver.ObjectRead{})), athena.CodeNotFound)
	o.wantCode(t, second(o.r.ReadObject(t.Context(), key, driver.ObjectRead{From: 5, To: 7})), athena.CodeNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for what, err := range map[string]error{
		"Object":      second(o.r.Object(ctx, key)),
		"Objects":     second(o.r.Objects(ctx, driver.ObjectList{})),
		"ReadObject":  second(o.r.ReadObject(ctx, key, driver.ObjectRead{})),
		"WriteObject": second(o.w.WriteObject(ctx, key, strings.NewReader("x"), driver.ObjectWrite{})),
		"StageObject": second(o.s.StageObject(ctx, key, driver.ObjectWrite{})),
		"Delete":      o.w.DeleteObjects(ctx, key),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a context that is over: %v", what, err)
		}
	}
}

func (o *objects) concurrent(t *testing.T) {
	in := folder() + "/"
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			b := []driver.Backend{o.b, o.other}[i%2]
			key := fmt.Sprintf("%s%d", in, i)
			for round := range 4 {
				body := noise(1000*i + round)
				if _, err := b.(driver.ObjectWriter).WriteObject(t.Context(), key, bytes.NewReader(body), driver.ObjectWrite{}); err != nil {
					t.Errorf("%s: %v", key, err)
					return
				}
				got, err := b.(driver.ObjectReader).ReadObject(t.Context(), key, driver.ObjectRead{})
				if err != nil {
					t.Errorf("%s: %v", key, err)
					return
				}
				raw, err := io.ReadAll(got)
				if err := errors.Join(err, got.Close()); err != nil || !bytes.Equal(raw, body) {
					t.Errorf("%s: %d bytes, want %d, %v", key, len(raw), len(body), err)
				}
			}
		})
	}
	wg.Wait()
	if keys, _ := o.list(t, driver.ObjectList{Prefix: in, Limit: 5}); len(keys) != 16 {
		t.Errorf("there are %q", keys)
	}
}
