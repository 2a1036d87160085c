// Package locals3 runs a private S3-compatible server on this machine, for
// `athena dev`, the demo, tests and benchmarks: versitygw over a directory.
//
// It checks signatures, keeps its data over restarts, and knows uploads in
// parts, conditions and checksums. It listens on 127.0.0.1 alone. A server is a
// child of this process, and this process's own program: versitygw changes the
// working directory and has state of its own, so that one process can hold one
// of them and had better do nothing else. The child ends when its standard input
// does, and so with its parent, however that ends.
//
// A program that calls Start calls Serve first thing in its main, or TestMain.
// The package knows nothing of Athena; production buckets are none of its
// business.
package locals3

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Config says how a server is run.
type Config struct {
	// Dir keeps buckets, and what is known of their objects, from one run to the
	// next; it is made if it is missing. Empty stands for a temporary directory
	// that Stop removes.
	Dir string
	// Port is the TCP port on 127.0.0.1; 0 stands for a free one.
	Port int
	// AccessKeyID and SecretAccessKey are what requests must be signed with. They
	// must be set.
	AccessKeyID, SecretAccessKey string
	// Log receives what the server says; nil drops it.
	Log io.Writer
}

// Region is the region of all servers.
const Region = "us-east-1"

// Server is a running server. Its methods are safe for concurrent use.
type Server struct {
	// Port is the TCP port on 127.0.0.1. It stays the same over Restart.
	Port int

	cfg       Config
	temporary bool

	mu    sync.Mutex
	child *child // nil when stopped
}

// Start starts a server and returns once it answers.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.AccessKeyID == "" || cfg.SecretAccessKey == "" {
		return nil, errors.New("locals3: a server needs an access key and its secret")
	}
	s := &Server{cfg: cfg}
	var err error
	if cfg.Dir == "" {
		s.temporary = true
		s.cfg.Dir, err = os.MkdirTemp("", "athena-s3-")
	} else if s.cfg.Dir, err = filepath.Abs(cfg.Dir); err == nil {
		err = os.MkdirAll(s.cfg.Dir, 0o700)
	}
	if err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		if s.temporary {
			os.RemoveAll(s.cfg.Dir)
		}
		return nil, fmt.Errorf("locals3: %w", err)
	}
	return s, nil
}

// Endpoint is the server's URL. Buckets are part of its path.
func (s *Server) Endpoint() string {
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port))
}

// Stop stops the server and waits for its end; one that does not obey until ctx
// is done is killed. Stopping a stopped server does nothing.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.stop(ctx, false)
	if s.temporary {
		err = errors.Join(err, os.RemoveAll(s.cfg.Dir))
	}
	return err
}

// Restart stops the server, if it runs, and starts it again over the same data
// and on the same port. With crash it is killed.
func (s *Server) Restart(ctx context.Context, crash bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(ctx, crash); err != nil {
		return err
	}
	return s.start(ctx)
}

func (s *Server) stop(ctx context.Context, crash bool) error {
	if s.child == nil {
		return nil
	}
	c := s.child
	s.child = nil
	if crash {
		_ = c.cmd.Process.Kill()
		<-c.done
		return nil
	}
	_ = c.stdin.Close()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("locals3: the server did not stop in time and was killed: %w", ctx.Err())
	}
}

// start tries other ports where somebody takes the chosen one first.
func (s *Server) start(ctx context.Context) error {
	if s.Port == 0 {
		s.Port = s.cfg.Port
	}
	chosen := s.Port == 0
	for attempt := 0; ; attempt++ {
		if chosen {
			port, err := freePort()
			if err != nil {
				return err
			}
			s.Port = port
		}
		c, err := s.run(ctx)
		if err == nil {
			s.child = c
			return nil
		}
		// A port is free a little later where its last server was killed.
		if attempt == 20 || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// A child is a running server.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	done  chan struct{}
}

// order is what a child is told on its standard input.
type order struct {
	Dir, Address, AccessKeyID, SecretAccessKey string
}

// childArg is the argument by which a process knows that it is a server.
const childArg = "local-s3-server"

// ready is what a child says once it answers.
const ready = "ready"

func (s *Server) run(ctx context.Context) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	orders, err := json.Marshal(order{s.cfg.Dir, net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)), s.cfg.AccessKeyID, s.cfg.SecretAccessKey})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, childArg)
	cmd.Dir = s.cfg.Dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	log := &tail{next: s.cfg.Log}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, stdin: stdin, done: make(chan struct{})}
	answers := make(chan bool, 1)
	go func() {
		defer close(c.done)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			if lines.Text() == ready {
				answers <- true
			} else {
				fmt.Fprintf(log, "%s\n", lines.Text())
			}
		}
		_ = cmd.Wait() // how it ended is in its log
	}()
	if _, err := stdin.Write(append(orders, '\n')); err != nil {
		_ = cmd.Process.Kill()
	}
	select {
	case <-answers:
		return c, nil
	case <-c.done:
		return nil, fmt.Errorf("the server ended at once\n%s", log.last())
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-c.done
		return nil, fmt.Errorf("the server was not ready in time: %w\n%s", ctx.Err(), log.last())
	}
}

// tail passes a log on and keeps its end.
type tail struct {
	next io.Writer

	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const most = 4 << 10
	t.kept = append(t.kept, p...)
	t.kept = t.kept[max(0, len(t.kept)-most):]
	if t.next != nil {
		return t.next.Write(p)
	}
	return len(p), nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.kept))
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
