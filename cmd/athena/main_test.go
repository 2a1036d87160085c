package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/locals3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
)

// suite is what the end-to-end tests share: the binary, built once, and one
// `athena dev`. It is the package's only state, there because a testing.T
// cannot carry it from test to test.
var suite struct {
	dir     string
	build   sync.Once
	failed  error
	dev     sync.Once
	running *process
	report  devReport
	skipped string
}

func TestMain(m *testing.M) {
	locals3.Serve()
	code := func() int {
		dir, err := os.MkdirTemp("", "athena-cmd-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := makeDevDir(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		suite.dir = dir
		code := s3test.Run(m)
		if p := suite.running; p != nil {
			if err := p.stop(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = max(code, 1)
			}
		}
		return code
	}()
	if suite.skipped != "" {
		fmt.Println(suite.skipped)
	}
	os.Exit(code)
}

// binary is the program, built once.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(suite.dir, "athena")
	suite.build.Do(func() {
		out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
		if err != nil {
			suite.failed = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if suite.failed != nil {
		t.Fatal(suite.failed)
	}
	return path
}

// A process of the program.
type process struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr *lockedBuffer
	done   chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// spawn starts the program. A process of one test is killed when that ends.
func spawn(t *testing.T, owned bool, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary(t), args...), stderr: &lockedBuffer{}, done: make(chan error, 1)}
	p.cmd.Env = append(clean(), env...)
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if owned {
		t.Cleanup(func() {
			_ = p.cmd.Process.Kill() // nothing to kill after a test that went well
			if t.Failed() {
				t.Logf("%v wrote to stderr:\n%s", args, p.stderr)
			}
		})
	}
	return p
}

// clean is the environment without Athena's variables.
func clean() (env []string) {
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ATHENA_") || strings.HasPrefix(kv, "ATHENA_PG_BIN=") {
			env = append(env, kv)
		}
	}
	return env
}

// line decodes the next line that the process writes.
func (p *process) line(v any) error {
	text, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%w; stderr:\n%s", err, p.stderr)
	}
	return json.Unmarshal(text, v)
}

// stop has the process end as a service manager would, and reports whether it
// ended well and in time.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, p.out)
		p.done <- p.cmd.Wait()
	}()
	select {
	case err := <-p.done:
		if err != nil {
			return fmt.Errorf("%v: %w\n%s", p.cmd.Args, err, p.stderr)
		}
		return nil
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		return fmt.Errorf("%v did not stop within 30 s\n%s", p.cmd.Args, p.stderr)
	}
}

// dev is the shared `athena dev`.
func dev(t *testing.T) devReport {
	t.Helper()
	suite.dev.Do(func() {
		p := spawn(t, false, nil, "dev", "--json", "--data", filepath.Join(suite.dir, "dev"))
		suite.running = p
		if err := p.line(&suite.report); err != nil {
			t.Errorf("dev: %v", err)
		}
	})
	if suite.report.URL == "" {
		t.Fatal("athena dev did not start")
	}
	return suite.report
}

// result is how one call of the program ended.
type result struct {
	exit           exit
	stdout, stderr string
}

// call runs the program within this process.
func call(t *testing.T, env []string, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	env = append([]string{"HOME=" + t.TempDir()}, env...)
	err := run(ctx, args, env, strings.NewReader(stdin), &out, &errs)
	return result{exitOf(err), out.String(), errs.String()}
}

// at is the environment that leads to a server.
func at(r devReport) []string {
	return []string{"ATHENA_URL=" + r.URL, "ATHENA_KEY=" + r.AdminKey, "ATHENA_CLIENT=shop"}
}
