package cqlroad

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

// shared is the one deployment of the test process. It is there because a testing.T
// cannot carry it from test to test.
var shared struct {
	once sync.Once
	rig  *rig.Rig
	err  error
}

func TestMain(m *testing.M) {
	code := cassandratest.Run(m)
	if shared.rig != nil {
		shared.rig.Stop()
	}
	os.Exit(code)
}

// A stage is the deployment with one client of a CQL engine.
type stage struct {
	*testing.T
	rig    *rig.Rig
	client string
	ks     string
}

// newStage makes a client of the connection, which may do all that there is.
func newStage(t *testing.T, name, keyspace string, conn athena.ScyllaConn) *stage {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		shared.rig, shared.err = rig.Start(ctx, rig.Config{Inside: true})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	s := &stage{T: t, rig: shared.rig, client: name, ks: keyspace}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.rig.Logs())
		}
	})
	connection := map[string]any{"hosts": conn.Hosts, "keyspace": conn.Keyspace}
	if conn.Datacenter != "" {
		connection["datacenter"] = conn.Datacenter
	}
	if conn.Consistency != "" {
		connection["consistency"] = conn.Consistency
	}
	if conn.Username != "" {
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte(conn.Password.Reveal()), 0o600); err != nil {
			t.Fatal(err)
		}
		connection["username"], connection["password"] = conn.Username, "file:"+file
	}
	s.wants(http.StatusOK, "", s.call("PUT", "/admin/clients/"+name, map[string]any{
		"client_name": name, "engine": "scylla", "lifecycle": "active", "connection": connection,
		"capabilities": map[string]bool{"gateway_query": true, "raw_cql": true, "deferred_query": true, "schema_read": true,
			"provisioning": true, "cdc": true, "pipeline_source": true, "pipeline_sink": true},
		"limits": map[string]any{"statement_timeout": "20s"},
	}))
	return s
}

// An answer is one of Athena's.
type answer struct {
	status    int
	Message   string          `json:"message"`
	Code      string          `json:"code"`
	Retryable bool            `json:"retryable"`
	Details   map[string]any  `json:"details"`
	Data      json.RawMessage `json:"data"`
	raw       string
}

// call makes a request in the client's name.
func (s *stage) call(method, path string, body any) answer {
	s.Helper()
	payload, err := json.Marshal(body)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.rig.URL+path, bytes.NewReader(payload))
	if err != nil {
		s.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+rig.AdminKey)
	req.Header.Set("X-Athena-Client", s.client)
	if body == nil {
		req.Body = http.NoBody
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		s.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{status: resp.StatusCode, raw: string(raw)}
	if err := json.Unmarshal(raw, &a); err != nil {
		s.Fatalf("%s %s: %d and no JSON: %.300s", method, path, resp.StatusCode, raw)
	}
	return a
}

// wants fails the test unless the answer is so. A code names an error.
func (s *stage) wants(status int, code string, a answer) answer {
	s.Helper()
	if a.status/100 != status/100 || code != "" && (a.status != status || a.Code != code) {
		s.Fatalf("the answer is %d %s; want %d %s", a.status, a.raw, status, code)
	}
	return a
}

// cql runs a raw statement. {ks} is the keyspace.
func (s *stage) cql(text string, params ...any) answer {
	s.Helper()
	return s.call("POST", "/gateway/sql", map[string]any{"query": s.in(text), "params": params, "language": "cql"})
}

func (s *stage) in(text string) string { return strings.ReplaceAll(text, "{ks}", s.ks) }

// must runs a raw statement that succeeds, and returns its rows.
func (s *stage) must(text string, params ...any) (rows []map[string]any) {
	s.Helper()
	a := s.wants(http.StatusOK, "", s.cql(text, params...))
	if err := json.Unmarshal(a.Data, &rows); err != nil {
		s.Fatalf("the data are %s", a.Data)
	}
	return rows
}

// deferred submits a statement and waits for its end.
func (s *stage) deferred(text string, params ...any) (state, raw string) {
	s.Helper()
	a := s.wants(http.StatusAccepted, "", s.call("POST", "/gateway/query", map[string]any{"query": s.in(text), "params": params, "deferred": true}))
	var job struct{ ID, State string }
	if err := json.Unmarshal(a.Data, &job); err != nil || job.ID == "" {
		s.Fatalf("no job: %s", a.raw)
	}
	for range 300 {
		a = s.wants(http.StatusOK, "", s.call("GET", "/gateway/deferred/"+job.ID, nil))
		if err := json.Unmarshal(a.Data, &job); err != nil {
			s.Fatal(err)
		}
		if (rig.Job{State: job.State}).Ended() {
			return job.State, a.raw
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.Fatalf("the job does not end: %s", a.raw)
	return "", ""
}

// tell says what was answered.
func (a answer) tell(what string) string {
	return fmt.Sprintf("%s: %d %s, %q", what, a.status, a.Code, a.Message)
}
