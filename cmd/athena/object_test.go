package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/athena-pipelines/athena/pkg/driver"
)

func TestObjectCommands(t *testing.T) {
	t.Parallel()
	env := append(at(dev(t)), "ATHENA_CLIENT=lake")
	dir := t.TempDir()
	in := fmt.Sprintf("cli-%d/", os.Getpid())
	file := filepath.Join(dir, "hello.csv")
	if err := os.WriteFile(file, []byte("a,b\n1,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	object := func(args ...string) string {
		t.Helper()
		return ok(t, env, append([]string{"object"}, args...)...)
	}
	refused := func(want exit, args ...string) string {
		t.Helper()
		got := call(t, env, "", append([]string{"object"}, args...)...)
		if got.exit != want {
			t.Errorf("object %v: exit %d, want %d: %s", args, got.exit, want, got.stderr)
		}
		return got.stderr
	}

	object("put", in, file, "--meta", "team=checkout") // into a folder, under the file's name
	object("put", in+"b c/ü.txt", file, "--content-type", "text/plain", "--if-absent")
	refused(exitConflict, "put", in+"b c/ü.txt", file, "--if-absent")
	if got := call(t, env, "from standard input", "object", "put", in+"stdin", "-"); got.exit != 0 {
		t.Errorf("%+v", got)
	}
	if got := object("get", in+"stdin"); got != "from standard input" {
		t.Errorf("it holds %q", got)
	}
	if got := object("get", in+"hello.csv", "--range", "4-6"); got != "1,2" {
		t.Errorf("the range is %q", got)
	}
	if got := object("get", in+"hello.csv", "--range", "-4"); got != "1,2\n" {
		t.Errorf("the end is %q", got)
	}
	to := filepath.Join(dir, "back.csv")
	object("get", in+"hello.csv", to)
	if raw, err := os.ReadFile(to); err != nil || string(raw) != "a,b\n1,2\n" {
		t.Errorf("%q, %v", raw, err)
	}
	refused(exitNotFound, "get", in+"nothing", to)
	if raw, _ := os.ReadFile(to); string(raw) != "a,b\n1,2\n" {
		t.Errorf("a read that failed left %q", raw)
	}

	var o driver.Object
	if err := json.Unmarshal([]byte(object("head", in+"hello.csv", "--json")), &o); err != nil || o.Bytes != 8 || !strings.HasPrefix(o.ContentType, "text/csv") || o.Metadata["team"] != "checkout" {
		t.Errorf("%+v, %v", o, err)
	}
	if got := object("head", in+"hello.csv"); !strings.Contains(got, "meta      team=checkout") {
		t.Errorf("%s", got)
	}
	object("cp", in+"hello.csv", in+"copies/")
	if got := object("ls", in); strings.Count(got, "\n") != 4 || !strings.Contains(got, in+"copies/\n") || !strings.Contains(got, in+"b c/\n") {
		t.Errorf("%s", got)
	}
	if got := object("ls", in, "-r", "--json"); strings.Count(got, "\n") != 4 || !strings.Contains(got, `"key":"`+in+`copies/hello.csv"`) {
		t.Errorf("%s", got)
	}
	if got := object("ls", in, "-r", "--limit", "2"); strings.Count(got, "\n") != 2 {
		t.Errorf("%s", got)
	}
	resp, err := http.Get(strings.TrimSpace(object("presign", in+"b c/ü.txt", "--expires", "1m")))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(raw) != "a,b\n1,2\n" {
		t.Errorf("%q, %v", raw, err)
	}
	object("presign", in+"new", "--put", "--content-type", "text/x", "--json")

	refused(exitUsage, "get", in+"hello.csv", "--range", "x")
	refused(exitUsage, "put", in+"dir", dir)
	refused(exitUsage, "put", in+"x")
	if got := refused(exitUsage, "get", "../x"); !strings.Contains(got, `"../x"`) {
		t.Errorf("%s", got)
	}
	refused(exitUsage, "rm", "-r", "")
	object("rm", in+"stdin", in+"nothing")
	object("rm", "-r", in)
	if got := object("ls", in, "-r"); got != "" {
		t.Errorf("what is left: %s", got)
	}
}
