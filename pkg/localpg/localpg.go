// Package localpg runs a private PostgreSQL server on this machine, for
// `athena dev`, the demo, tests and benchmarks.
//
// A server listens on 127.0.0.1 alone, with a random password and logical
// decoding on. It is a child of this process: on Linux the kernel stops it when
// this process dies, and elsewhere the next Start over the same directory does.
// The package knows nothing of Athena; production databases are none of its
// business.
package localpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Config says how a server is run.
type Config struct {
	// Dir keeps the server's data and password from one run to the next; it
	// is made if it is missing. Empty stands for a temporary directory that
	// Stop removes.
	//
	// When this process is root, PostgreSQL refuses to run as it, so the
	// server runs as user postgres (or nobody) and Dir is given to that user;
	// the directories above Dir must let that user through.
	Dir string
	// BinDir holds initdb and postgres; empty stands for what Find finds.
	BinDir string
	// Port is the TCP port on 127.0.0.1; 0 stands for a free one.
	Port int
	// Settings are server settings that override the package's own, such as
	// fsync=off for tests.
	Settings map[string]string
	// Log receives the server's log; nil drops it.
	Log io.Writer
	// Download allows to fetch PostgreSQL when none is found.
	Download bool
	// Progress is told, in words, of steps that take long: a download, making
	// the data directory. It may be nil.
	Progress func(string)
}

// StopMode says how a server is stopped.
type StopMode string

// The modes, with PostgreSQL's own names.
const (
	Fast      StopMode = "fast"      // ends sessions, writes a checkpoint
	Immediate StopMode = "immediate" // as in a crash: recovery on the next start
)

// Server is a running server. Its methods are safe for concurrent use.
type Server struct {
	// Port is the TCP port on 127.0.0.1. It stays the same over Restart.
	Port int

	cfg       Config
	owner     *owner // nil: the server runs as this process's own user
	password  string
	temporary bool

	mu    sync.Mutex
	child *child // nil when stopped
}

// Start starts a server and returns once it accepts connections. A server that
// an earlier, crashed process left over the same Dir is stopped first.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	own, err := serverOwner()
	if err != nil {
		return nil, err
	}
	if cfg.BinDir == "" {
		cfg.BinDir, err = Find()
		if err != nil && cfg.Download {
			cfg.BinDir, err = download(ctx, cfg.Progress)
		}
		if err != nil {
			return nil, err
		}
	}
	s := &Server{cfg: cfg, owner: own}
	if err := s.prepareDir(); err != nil {
		return nil, err
	}
	if err = s.initialize(ctx); err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		if s.temporary {
			os.RemoveAll(s.cfg.Dir)
		}
		return nil, err
	}
	return s, nil
}

// DSN is the connection string, with its password, of one of the server's
// databases; the database postgres always exists.
func (s *Server) DSN(db string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", s.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)),
		Path:     "/" + db,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Stop stops the server and waits for its end. A server that does not obey
// until ctx is done is killed. Stopping a stopped server does nothing.
func (s *Server) Stop(ctx context.Context, mode StopMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.stop(ctx, mode)
	if s.temporary {
		err = errors.Join(err, os.RemoveAll(s.cfg.Dir))
	}
	return err
}

// Restart stops the server with the given mode, if it runs, and starts it
// again over the same data and on the same port.
func (s *Server) Restart(ctx context.Context, mode StopMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(ctx, mode); err != nil {
		return err
	}
	return s.start(ctx)
}

func (s *Server) stop(ctx context.Context, mode StopMode) error {
	if s.child == nil {
		return nil
	}
	c := s.child
	s.child = nil
	if err := c.signal(mode); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("localpg: stop the server: %w", err)
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("localpg: the server did not stop in time and was killed: %w", ctx.Err())
	}
}

func (s *Server) data() string { return filepath.Join(s.cfg.Dir, "data") }

func (s *Server) prepareDir() (err error) {
	if s.cfg.Dir == "" {
		s.temporary = true
		s.cfg.Dir, err = os.MkdirTemp("", "athena-postgres-")
	} else if s.cfg.Dir, err = filepath.Abs(s.cfg.Dir); err == nil {
		err = os.MkdirAll(s.cfg.Dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	return s.owner.take(s.cfg.Dir)
}

// initialize makes the data directory on first use. It is made under another
// name and renamed, so that a crash on the way leaves nothing half done.
func (s *Server) initialize(ctx context.Context) error {
	pwfile := filepath.Join(s.cfg.Dir, "password")
	version, err := os.ReadFile(filepath.Join(s.data(), "PG_VERSION"))
	if err == nil {
		if err := s.checkVersion(ctx, strings.TrimSpace(string(version))); err != nil {
			return err
		}
		password, err := os.ReadFile(pwfile)
		if err != nil {
			return fmt.Errorf("localpg: the password of the data in %s is gone: %w", s.cfg.Dir, err)
		}
		s.password = strings.TrimSpace(string(password))
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("localpg: %w", err)
	}

	s.cfg.Progress("making a data directory in " + s.cfg.Dir)
	s.password = rand.Text()
	if err := os.WriteFile(pwfile, []byte(s.password+"\n"), 0o600); err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	if err := s.owner.chown(pwfile); err != nil {
		return err
	}
	fresh := s.data() + ".new"
	args := []string{
		"-D", fresh, "-U", "postgres", "--pwfile", pwfile,
		"--auth", "scram-sha-256", "--encoding", "UTF8",
	}
	if s.temporary || s.cfg.Settings["fsync"] == "off" { // need not outlive a power cut
		args = append(args, "--no-sync")
	}
	// C.UTF-8 knows letters beyond ASCII; not every system has it.
	for _, locale := range []string{"C.UTF-8", "C"} {
		if err := os.RemoveAll(fresh); err != nil {
			return fmt.Errorf("localpg: %w", err)
		}
		cmd := s.command(ctx, "initdb", append(args, "--locale", locale)...)
		var out []byte
		if out, err = cmd.CombinedOutput(); err == nil {
			break
		}
		err = fmt.Errorf("localpg: initdb: %w\n%s", err, lastLines(out))
	}
	if err != nil {
		return err
	}
	if err := os.Rename(fresh, s.data()); err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	return nil
}

// checkVersion refuses data of another major version with words of its own:
// PostgreSQL's would be buried in a log.
func (s *Server) checkVersion(ctx context.Context, data string) error {
	out, err := s.command(ctx, "postgres", "--version").Output()
	if err != nil {
		return fmt.Errorf("localpg: %s: %w", filepath.Join(s.cfg.BinDir, "postgres"), err)
	}
	words := strings.Fields(string(out)) // postgres (PostgreSQL) 15.18 (…)
	if len(words) >= 3 && words[2] != data && !strings.HasPrefix(words[2], data+".") {
		return fmt.Errorf("localpg: the data in %s is of PostgreSQL %s and cannot be opened by PostgreSQL %s; "+
			"point ATHENA_PG_BIN at the programs of version %s, or choose another directory", s.cfg.Dir, data, words[2], data)
	}
	return nil
}

func (s *Server) start(ctx context.Context) error {
	if err := s.stopLeftover(ctx); err != nil {
		return err
	}
	if s.Port == 0 {
		s.Port = s.cfg.Port
	}
	chosen := s.Port == 0
	// Two things go away by themselves and are worth further attempts: a port
	// that somebody took between its choice and its use, and the shared memory
	// of a server that was killed, which its last processes still hold.
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
		taken := chosen && strings.Contains(err.Error(), "could not bind")
		held := strings.Contains(err.Error(), "shared memory block") || strings.Contains(err.Error(), "lock file \"postmaster.pid\"")
		if attempt == 50 || !taken && !held {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// run starts the program and waits until it is ready.
func (s *Server) run(ctx context.Context) (*child, error) {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "", // its path would have to be short, and nobody needs it
		"wal_level":               "logical",
		"max_wal_senders":         "20",
		"max_replication_slots":   "20",
		"logging_collector":       "off",
	}
	for name, value := range s.cfg.Settings {
		settings[name] = value
	}
	settings["port"] = strconv.Itoa(s.Port)
	args := []string{"-D", s.data()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	c := &child{
		cmd:  s.command(context.WithoutCancel(ctx), "postgres", args...),
		data: s.data(),
		done: make(chan struct{}),
	}
	c.tail.next = s.cfg.Log
	c.cmd.Stdout, c.cmd.Stderr = &c.tail, &c.tail
	c.cmd.WaitDelay = 5 * time.Second // backends may hold the pipe a little longer
	if err := c.spawn(); err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if pid := readPidFile(s.data()); pid.number == c.cmd.Process.Pid && pid.ready {
				return c, nil
			}
		case <-c.done:
			return nil, fmt.Errorf("localpg: the server ended at once\n%s", c.tail.last())
		case <-ctx.Done():
			c.signal(Immediate)
			<-c.done
			return nil, fmt.Errorf("localpg: the server was not ready in time: %w\n%s", ctx.Err(), c.tail.last())
		}
	}
}

// stopLeftover stops a server that still runs over our data directory.
func (s *Server) stopLeftover(ctx context.Context) error {
	pid := readPidFile(s.data())
	if pid.number == 0 || !runsOver(pid, s.data()) {
		return nil
	}
	s.cfg.Progress(fmt.Sprintf("stopping the server (process %d) that an earlier run left behind", pid.number))
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := s.command(ctx, "pg_ctl", "stop", "-D", s.data(), "-m", "fast", "-w", "-t", "15").CombinedOutput()
	if err != nil && runsOver(pid, s.data()) {
		return fmt.Errorf("localpg: stop the server (process %d) that runs over %s: %w\n%s", pid.number, s.data(), err, lastLines(out))
	}
	return nil
}

// command is a PostgreSQL program that runs as the server's owner, without
// this process's PG… variables.
func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.cfg.BinDir, name), args...)
	cmd.Dir = s.cfg.Dir // the current one may be closed to the server's user
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PG") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.SysProcAttr = s.owner.attributes()
	return cmd
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("localpg: find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
