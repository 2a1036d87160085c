package scyllatest

import (
	"errors"
	"net"
	"testing"

	"github.com/datastax/go-cassandra-native-protocol/datatype"
	"github.com/datastax/go-cassandra-native-protocol/message"
)

// An Option changes what New and Start make.
type Option func(*Cluster)

// Start starts a double that lives as long as the test.
func Start(t testing.TB, opts ...Option) *Cluster {
	t.Helper()
	c, err := New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// New starts a double on a free port of the loopback.
func New(opts ...Option) (*Cluster, error) {
	s := &Cluster{tabs: map[string]*table{}, udts: map[string]*datatype.UserDefined{}, prep: map[string]*stmt{}, Seen: map[string]int{}}
	for _, o := range opts {
		o(s)
	}
	s.bootstrap()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.ln = ln
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s, nil
}

// Hosts are the contact points, each "address:port".
func (s *Cluster) Hosts() []string { return []string{s.ln.Addr().String()} }

// Close stops listening.
func (s *Cluster) Close() { s.ln.Close() }

// Exec runs a statement without the wire, as an administrator.
func (s *Cluster) Exec(cql string) error {
	reply := s.handle(&message.Query{Query: cql, Options: &message.QueryOptions{}})
	if e, ok := reply.(message.Error); ok {
		return errors.New(e.GetErrorMessage())
	}
	return nil
}

// MustExec runs statements in their order, and fails the test at the first error.
func (s *Cluster) MustExec(t testing.TB, cql ...string) {
	t.Helper()
	for _, q := range cql {
		if err := s.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}
