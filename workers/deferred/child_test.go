package deferred_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/driver"
	worker "github.com/athena-pipelines/athena/workers/deferred"
)

// childVariable turns the test binary into a worker process, which a test can
// kill or stop as the system does.
const childVariable = "ATHENA_TEST_WORKER"

type childConfig struct {
	ID, URL, Key string
	// Freeze stops the process, as SIGSTOP does, between the storing of a
	// token and COMMIT.
	Freeze bool
}

func beChild(text string) int {
	var cfg childConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // none outlives its test
	defer cancel()
	if err := runChild(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runChild(ctx context.Context, cfg childConfig) error {
	nc, err := bus.Connect(ctx, bus.ConnectConfig{URLs: []string{cfg.URL}})
	if err != nil {
		return err
	}
	defer nc.Close()
	b, err := bus.New(nc, bus.Config{})
	if err != nil {
		return err
	}
	p, err := wire(ctx, b, cfg.Key)
	if err != nil {
		return err
	}
	var wrap func(driver.Backend) driver.Backend
	if cfg.Freeze {
		wrap = freezing
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	w := worker.New(p.config(cfg.ID, p.resolver(wrap), log))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.catalog.Run(ctx) })
	g.Go(func() error { return w.Run(ctx) })
	fmt.Println("up")
	return g.Wait()
}

// everything is what a PostgreSQL backend offers to a worker.
type everything interface {
	driver.Backend
	driver.Querier
	driver.TrackedQuerier
}

// hooked calls before between the storing of a token and COMMIT.
type hooked struct {
	everything
	before func()
}

func (h hooked) QueryTracked(ctx context.Context, s driver.Statement) (driver.TrackedRows, error) {
	rows, err := h.everything.QueryTracked(ctx, s)
	if err != nil {
		return nil, err
	}
	return hookedRows{rows, h.before}, nil
}

type hookedRows struct {
	driver.TrackedRows
	before func()
}

func (r hookedRows) Commit(ctx context.Context, record func(context.Context, driver.Token) error) error {
	return r.TrackedRows.Commit(ctx, func(ctx context.Context, t driver.Token) error {
		err := record(ctx, t)
		if err == nil {
			r.before()
		}
		return err
	})
}

// freezing stops the process at its first staged write.
func freezing(b driver.Backend) driver.Backend {
	var once sync.Once
	return hooked{b.(everything), func() {
		once.Do(func() {
			fmt.Println("staged")
			syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			time.Sleep(300 * time.Millisecond) // the signal may stop this thread a little later
		})
	}}
}

// child is a worker process.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	out *bufio.Reader
	err *lockedBuffer
}

func (d *deployment) child(id string, freeze bool) *child {
	d.t.Helper()
	cfg, err := json.Marshal(childConfig{ID: id, URL: d.server.URL(), Key: d.key, Freeze: freeze})
	if err != nil {
		d.t.Fatal(err)
	}
	c := &child{t: d.t, cmd: exec.Command(os.Args[0], "-test.run=^$"), err: &lockedBuffer{}}
	c.cmd.Env = append(os.Environ(), childVariable+"="+string(cfg))
	c.cmd.Stderr = c.err
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(c.kill)
	c.says("up")
	return c
}

// says waits for a line.
func (c *child) says(want string) {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != want {
		c.t.Fatalf("the worker process says %q, %v; want %q\n%s", line, err, want, c.err.String())
	}
}

// kill is kill -9. Once is enough.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		c.cmd.Process.Kill()
		io.Copy(io.Discard, c.out)
		c.cmd.Wait()
	}
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}
