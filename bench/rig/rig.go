// Package rig runs a deployment of real processes beside a real PostgreSQL, for
// benchmarks and for the crash suite: one process with broker and API, and as
// many workers as are asked for.
//
// It talks to them as a user would, over HTTP and NATS, and knows nothing of
// their insides.
package rig

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/localpg"
)

// AdminKey is the admin key of every rig.
const AdminKey = "ath_00112233445566aa.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

const password = "rig-password"

// Config says what to run. Zero fields stand for nothing special.
type Config struct {
	Tags    []string // build tags of the binary
	Workers int      // processes beside the server
	Inside  bool     // the server runs a worker too
	// Binary is one that Build has made; empty has Start build one.
	Binary string
	// Settings are added to the server's configuration, as YAML, and
	// WorkerSettings to each worker's.
	Settings, WorkerSettings string
	// Sync is the broker's setting of that name, always if empty.
	Sync string
	// Postgres are settings of the database server.
	Postgres map[string]string
	// Proxied has Athena's processes reach the database through Rig.Proxy.
	Proxied bool
	// Bare leaves the database out: the caller has its own.
	Bare bool
}

// Rig is a running deployment.
type Rig struct {
	URL      string
	Database *localpg.Server
	Proxy    *Proxy // nil if Athena reaches the database itself
	Server   *Process
	Workers  []*Process
	binary   string
	dir      string
	broker   string
	http     *http.Client
}

// DSN reaches the rig's database.
func (r *Rig) DSN() string { return r.Database.DSN("postgres") }

// Build makes the binary in a directory of the caller's.
func Build(ctx context.Context, dir string, tags ...string) (string, error) {
	binary := filepath.Join(dir, "athena")
	build := exec.CommandContext(ctx, "go", "build", "-tags", strings.Join(tags, ","), "-o", binary, "github.com/athena-pipelines/athena/cmd/athena")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return binary, nil
}

// Start builds the binary and starts everything in a temporary directory. The server is ready when Start
// returns. After an error, as after success, Stop ends what runs.
func Start(ctx context.Context, cfg Config) (*Rig, error) {
	r := &Rig{}
	var err error
	if r.dir, err = os.MkdirTemp("", "athena-rig-"); err != nil {
		return r, err
	}
	// PostgreSQL does not run as root, and its own user has to come through.
	if err := os.Chmod(r.dir, 0o711); err != nil {
		return r, err
	}
	r.http = &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 2000}}
	if r.binary = cfg.Binary; r.binary == "" {
		if r.binary, err = Build(ctx, r.dir, cfg.Tags...); err != nil {
			return r, err
		}
	}
	if !cfg.Bare {
		if r.Database, err = localpg.Start(ctx, localpg.Config{Dir: filepath.Join(r.dir, "pg"), Settings: cfg.Postgres}); err != nil {
			return r, fmt.Errorf("a PostgreSQL server: %w", err)
		}
	}
	if cfg.Proxied {
		if r.Proxy, err = NewProxy(fmt.Sprintf("127.0.0.1:%d", r.Database.Port)); err != nil {
			return r, err
		}
	}
	api, err := freePort()
	if err != nil {
		return r, err
	}
	broker, err := freePort()
	if err != nil {
		return r, err
	}
	r.URL, r.broker = "http://127.0.0.1:"+api, broker
	r.Server, err = r.process("server", "serve", `
listen: 127.0.0.1:`+api+`
nats:
  embedded:
    listen: 127.0.0.1:`+broker+`
    user: rig
    password: `+password+`
    sync: `+cmp.Or(cfg.Sync, "always")+`
worker:
  enabled: `+strconv.FormatBool(cfg.Inside)+`
`+cfg.Settings)
	if err != nil {
		return r, err
	}
	for n := range cfg.Workers {
		name := fmt.Sprintf("worker-%d", n+1)
		w, err := r.process(name, "worker", `
nats:
  url: nats://127.0.0.1:`+broker+`
  user: rig
  password: `+password+`
worker:
  id: `+name+`
`+cfg.WorkerSettings)
		if err != nil {
			return r, err
		}
		r.Workers = append(r.Workers, w)
	}
	for _, p := range append([]*Process{r.Server}, r.Workers...) {
		if err := p.Start(""); err != nil {
			return r, err
		}
		if p == r.Server {
			if err := r.Ready(ctx); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// Stop kills what runs and removes what it kept.
func (r *Rig) Stop() {
	for _, p := range r.Workers {
		p.Kill()
	}
	if r.Server != nil {
		r.Server.Kill()
	}
	if r.Proxy != nil {
		r.Proxy.Close()
	}
	if r.Database != nil {
		r.Database.Stop(context.Background(), localpg.Immediate)
	}
	os.RemoveAll(r.dir)
}

// Ready waits until the server says that it is.
func (r *Rig) Ready(ctx context.Context) error {
	return Until(ctx, 30*time.Second, func() bool {
		resp, err := r.http.Get(r.URL + "/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Broker connects to the rig's broker.
func (r *Rig) Broker(ctx context.Context) (*nats.Conn, error) {
	return bus.Connect(ctx, bus.ConnectConfig{URLs: []string{"nats://127.0.0.1:" + r.broker}, User: "rig", Password: password})
}

// Client defines, or redefines, a client on the rig's database. It may do what
// a deferred query needs, and more.
func (r *Rig) Client(name string, maxRunning int, more ...string) error {
	capabilities := map[string]bool{"gateway_query": true, "raw_sql": true, "deferred_query": true, "schema_read": true}
	for _, c := range more {
		capabilities[c] = true
	}
	status, reply, err := r.Call(http.MethodPut, "/admin/clients/"+name, "", map[string]any{
		"client_name": name, "engine": "postgres", "lifecycle": "active",
		"capabilities": capabilities,
		"connection":   map[string]any{"dsn": "env:RIG_DSN", "max_conns": maxRunning + 2},
		"limits":       map[string]any{"max_running": maxRunning, "max_queued": 10_000_000, "statement_timeout": "10m"},
	})
	if err == nil && status >= 300 {
		err = fmt.Errorf("client %s: %d %s", name, status, reply.Message)
	}
	return err
}

// A Reply is what is read of an answer.
type Reply struct {
	Message string          `json:"message"`
	Code    string          `json:"code"`
	Data    json.RawMessage `json:"data"`
}

// Job is what is read of a job.
type Job struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Attempts []struct {
		N       int       `json:"n"`
		Worker  string    `json:"worker"`
		Started time.Time `json:"started"`
		Ended   time.Time `json:"ended"`
	} `json:"attempts"`
}

// Ended reports whether the job has come to an end.
func (j Job) Ended() bool {
	switch j.State {
	case "succeeded", "failed", "timed_out", "cancelled", "expired", "indeterminate":
		return true
	}
	return false
}

// Job reads the reply's data as a job.
func (r Reply) Job() (j Job) {
	json.Unmarshal(r.Data, &j)
	return j
}

// Call makes one request as the client "shop", or as the one that stands before
// a colon in the path ("other:/gateway/query"). An error means that there was
// no whole answer.
func (r *Rig) Call(method, path, idempotencyKey string, body any) (int, Reply, error) {
	client := "shop"
	if name, rest, ok := strings.Cut(path, ":"); ok && !strings.HasPrefix(path, "/") {
		client, path = name, rest
	}
	var reply Reply
	var payload io.Reader = http.NoBody
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, reply, err
		}
		payload = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, r.URL+path, payload)
	if err != nil {
		return 0, reply, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+AdminKey)
	req.Header.Set("X-Athena-Client", client)
	if idempotencyKey != "" {
		req.Header.Set("Idempotency-Key", idempotencyKey)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return 0, reply, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(raw, &reply)
	}
	return resp.StatusCode, reply, err
}

// Logs gives the last lines of every process.
func (r *Rig) Logs() string {
	var b strings.Builder
	for _, p := range append([]*Process{r.Server}, r.Workers...) {
		if p == nil {
			continue
		}
		raw, _ := os.ReadFile(p.log)
		fmt.Fprintf(&b, "%s:\n%s\n", p.Name, raw[max(0, len(raw)-3000):])
	}
	return b.String()
}

// Process is one process of a rig. It is safe for concurrent use.
type Process struct {
	Name string
	rig  *Rig
	args []string
	log  string
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

func (r *Rig) process(name, command, settings string) (*Process, error) {
	config := filepath.Join(r.dir, name+".yaml")
	err := os.WriteFile(config, []byte("data_dir: "+filepath.Join(r.dir, name)+settings), 0o600)
	return &Process{Name: name, rig: r, args: []string{command, "--config", config}, log: filepath.Join(r.dir, name+".log")}, err
}

// DataDir is the process's data directory.
func (p *Process) DataDir() string { return filepath.Join(p.rig.dir, p.Name) }

// Start starts the process, after killing one that runs. Crashpoint arms a build
// with crash points; see pkg/crashpoint.
func (p *Process) Start(crashpoint string) error {
	p.Kill()
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.rig.binary, p.args...)
	dsn := ""
	if p.rig.Database != nil {
		dsn = p.rig.DSN()
	}
	if p.rig.Proxy != nil {
		dsn = strings.Replace(dsn, fmt.Sprintf(":%d/", p.rig.Database.Port), ":"+p.rig.Proxy.Port()+"/", 1)
	}
	cmd.Env = append(os.Environ(), "ATHENA_ADMIN_KEY="+AdminKey, "RIG_DSN="+dsn, "ATHENA_CRASHPOINT="+crashpoint)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.done = cmd, done
	return nil
}

// Done is closed when the process that was started last has ended.
func (p *Process) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// Killed reports whether the process that was started last has ended, by
// SIGKILL.
func (p *Process) Killed() bool {
	select {
	case <-p.Done():
		status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
		return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
	default:
		return false
	}
}

// Signal sends a signal to the process that was started last.
func (p *Process) Signal(sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Signal(sig)
}

// Stopped reports whether the process that was started last stands still, by
// SIGSTOP.
func (p *Process) Stopped() bool {
	p.mu.Lock()
	pid := p.cmd.Process.Pid
	p.mu.Unlock()
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, state, _ := strings.Cut(string(raw), "State:")
	return strings.HasPrefix(strings.TrimSpace(state), "T")
}

// Kill ends the process with SIGKILL, if it runs, and waits for its end.
func (p *Process) Kill() {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd != nil {
		cmd.Process.Kill()
		<-done
	}
}

// RSS is the process's resident memory in bytes, as Linux reports it, and the
// peak of it.
func (p *Process) RSS() (now, peak int64, err error) {
	p.mu.Lock()
	pid := p.cmd.Process.Pid
	p.mu.Unlock()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	read := func(name string) int64 {
		_, rest, _ := strings.Cut(string(raw), name+":")
		var kb int64
		fmt.Sscan(rest, &kb)
		return kb << 10
	}
	return read("VmRSS"), read("VmHWM"), nil
}

// Until asks every 20 ms whether something is done, for at most that long.
func Until(ctx context.Context, most time.Duration, done func() bool) error {
	for end := time.Now().Add(most); !done(); time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			return errors.New("not done within " + most.String())
		}
	}
	return nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
