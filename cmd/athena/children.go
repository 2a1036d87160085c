package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A child is a process of this program, for what can be shown with real
// processes alone.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string
	out  io.ReadCloser
	done chan struct{} // closed when it has ended
	err  error         // how it ended; set before done is closed
}

// spawn starts this program as another process, whose standard error goes to a
// file in dir. It gets the environment without Athena's variables, and env.
func (p *program) spawn(dir, name string, env []string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{name: name, cmd: exec.Command(self, args...), log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd.Stderr = log
	for _, kv := range p.environ {
		if !strings.HasPrefix(kv, "ATHENA_") {
			c.cmd.Env = append(c.cmd.Env, kv)
		}
	}
	c.cmd.Env = append(c.cmd.Env, env...)
	if c.out, err = c.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// follow waits for the process in the background. What it has still to write to
// standard output is dropped.
func (c *child) follow() {
	go func() {
		_, _ = io.Copy(io.Discard, c.out)
		c.err = c.cmd.Wait()
		close(c.done)
	}()
}

// firstLine decodes the line of JSON that the process writes when it is ready.
func (c *child) firstLine(ctx context.Context, v any) error {
	type read struct {
		line []byte
		err  error
	}
	got := make(chan read, 1)
	go func() {
		line, err := bufio.NewReader(c.out).ReadBytes('\n')
		got <- read{line, err}
	}()
	select {
	case r := <-got:
		c.follow()
		if r.err != nil {
			return fmt.Errorf("%s ended before it was ready:\n%s", c.name, c.tail())
		}
		return json.Unmarshal(r.line, v)
	case <-ctx.Done():
		_ = c.cmd.Process.Kill()
		<-got
		c.follow()
		return fmt.Errorf("%s was not ready in time: %w\n%s", c.name, ctx.Err(), c.tail())
	}
}

// kill ends the process at once, as a crash does.
func (c *child) kill() error {
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-c.done
	return nil
}

// stop asks the process to end and reports whether it did so well.
func (c *child) stop(within time.Duration) error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.done:
	case <-time.After(within):
		_ = c.kill()
		return fmt.Errorf("%s did not stop within %s and was killed:\n%s", c.name, within, c.tail())
	}
	if c.err != nil {
		return fmt.Errorf("%s: %w\n%s", c.name, c.err, c.tail())
	}
	return nil
}

// tail is the end of the process's log.
func (c *child) tail() string {
	raw, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-2000):])
}
