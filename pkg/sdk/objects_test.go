package sdk_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/api/apitest"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

func TestObjectsOfAClient(t *testing.T) {
	t.Parallel()
	w := apitest.Start(t, nil)
	w.Lake(t, "lake", s3test.Fake(t), nil)
	api, err := sdk.New(w.URL, w.Admin, sdk.Options{HTTP: w.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	ctx, lake := t.Context(), api.Client("lake")
	const key = "day=1/a b%20ü.txt"
	made, err := lake.WriteObject(ctx, key, strings.NewReader("hello, lake"), driver.ObjectWrite{ContentType: "text/plain", Metadata: map[string]string{"team": "checkout"}, IfNoneMatch: true})
	if err != nil || made.Key != key || made.Bytes != 11 || made.ETag == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := lake.WriteObject(ctx, key, strings.NewReader("x"), driver.ObjectWrite{IfNoneMatch: true}); athena.CodeOf(err) != athena.CodeConflict {
		t.Errorf("a second: %v", err)
	}
	o, err := lake.Object(ctx, key)
	if err != nil || o.Bytes != 11 || o.ETag != made.ETag || o.Metadata["team"] != "checkout" || o.ContentType != "text/plain" || o.Modified.IsZero() {
		t.Errorf("%+v, %v", o, err)
	}
	for _, test := range []struct {
		read     driver.ObjectRead
		want     string
		from, to int64
	}{
		{driver.ObjectRead{}, "hello, lake", 0, 11},
		{driver.ObjectRead{From: 7}, "lake", 7, 11},
		{driver.ObjectRead{From: 0, To: 5}, "hello", 0, 5},
		{driver.ObjectRead{From: -4, IfMatch: o.ETag}, "lake", 7, 11},
	} {
		body, err := lake.ReadObject(ctx, key, test.read)
		if err != nil {
			t.Errorf("%+v: %v", test.read, err)
			continue
		}
		raw, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil || string(raw) != test.want || body.From != test.from || body.To != test.to || body.Bytes != 11 {
			t.Errorf("%+v: %q from %d to %d of %d, %v", test.read, raw, body.From, body.To, body.Bytes, err)
		}
	}
	if _, err := lake.ReadObject(ctx, key, driver.ObjectRead{From: 100}); athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Errorf("behind the end: %v", err)
	}
	if _, err := lake.CopyObject(ctx, key, "copy", driver.ObjectWrite{Metadata: map[string]string{"n": "1"}}); err != nil {
		t.Error(err)
	}
	page, err := lake.Objects(ctx, driver.ObjectList{Delimiter: "/", Limit: 1})
	if err != nil || len(page.Objects) != 1 || page.Objects[0].Key != "copy" || page.Next == "" {
		t.Fatalf("%+v, %v", page, err)
	}
	if page, err = lake.Objects(ctx, driver.ObjectList{Delimiter: "/", Limit: 1, After: page.Next}); err != nil || len(page.Prefixes) != 1 || page.Prefixes[0] != "day=1/" {
		t.Errorf("%+v, %v", page, err)
	}
	p, err := lake.PresignRead(ctx, key, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !bytes.Equal(raw, []byte("hello, lake")) {
		t.Errorf("%q", raw)
	}
	if _, err := lake.PresignWrite(ctx, key, time.Minute, driver.ObjectWrite{ContentType: "text/plain"}); err != nil {
		t.Error(err)
	}
	if err := lake.DeleteObject(ctx, key); err != nil {
		t.Error(err)
	}
	if _, err := lake.Object(ctx, key); athena.CodeOf(err) != athena.CodeNotFound || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("%v", err)
	}
	if _, err := lake.ReadObject(ctx, key, driver.ObjectRead{}); athena.CodeOf(err) != athena.CodeNotFound {
		t.Errorf("%v", err)
	}
	if _, err := lake.WriteObject(ctx, "../x", strings.NewReader("x"), driver.ObjectWrite{}); athena.CodeOf(err) != athena.CodeInvalidRequest {
		t.Errorf("%v", err)
	}
}
