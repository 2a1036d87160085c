package scyllatest

import (
	"bufio"
	"crypto/md5"
	"fmt"
	"net"
	"sync"

	"github.com/datastax/go-cassandra-native-protocol/datatype"
	"github.com/datastax/go-cassandra-native-protocol/frame"
	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

type Cluster struct {
	ln    net.Listener
	mu    sync.Mutex
	tabs  map[string]*table
	udts  map[string]*datatype.UserDefined
	prep  map[string]*stmt
	clock int64 // last write timestamp, microseconds

	Seen  map[string]int // "PREPARE <cql>", "QUERY <cql>" -> count
	Pages int            // result pages that were not the last one
	Fail  func(op, cql string) message.Message
}

// fail carries a protocol error message up to handle.
type fail struct{ msg message.Message }

func invalid(f string, a ...any) fail {
	return fail{&message.Invalid{ErrorMessage: fmt.Sprintf(f, a...)}}
}

func syntax(f string, a ...any) fail {
	return fail{&message.SyntaxError{ErrorMessage: "line 1: " + fmt.Sprintf(f, a...)}}
}

func (s *Cluster) serve(c net.Conn) {
	defer c.Close()
	codec, r, w := frame.NewCodec(), bufio.NewReader(c), bufio.NewWriter(c)
	for {
		f, err := codec.DecodeFrame(r)
		if err != nil {
			return
		}
		v, reply := f.Header.Version, message.Message(nil)
		if v == primitive.ProtocolVersion3 || v == primitive.ProtocolVersion4 {
			reply = s.handle(f.Body.Message)
		} else {
			reply = &message.ProtocolError{ErrorMessage: fmt.Sprintf("Invalid or unsupported protocol version (%d); the lowest supported version is 3 and the greatest is 4", v)}
			v = primitive.ProtocolVersion4
		}
		if codec.EncodeFrame(frame.NewFrame(v, f.Header.StreamId, reply), w) != nil || w.Flush() != nil {
			return
		}
	}
}

func (s *Cluster) handle(m message.Message) (reply message.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(fail)
			if !ok {
				panic(r)
			}
			reply = f.msg
		}
	}()
	switch m := m.(type) {
	case *message.Options:
		return &message.Supported{Options: map[string][]string{
			"CQL_VERSION": {"3.3.1"}, "COMPRESSION": {},
			"SCYLLA_SHARD": {"0"}, "SCYLLA_NR_SHARDS": {"1"}, "SCYLLA_SHARDING_IGNORE_MSB": {"12"},
			"SCYLLA_PARTITIONER":        {"org.apache.cassandra.dht.Murmur3Partitioner"},
			"SCYLLA_SHARDING_ALGORITHM": {"biased-token-round-robin"},
		}}
	case *message.Startup, *message.Register:
		return &message.Ready{}
	case *message.Prepare:
		s.note("PREPARE", m.Query)
		st, id := s.parse(m.Query), md5.Sum([]byte(m.Query))
		s.prep[string(id[:])] = st
		res := &message.PreparedResult{PreparedQueryId: id[:], VariablesMetadata: &message.VariablesMetadata{Columns: st.binds, PkIndices: st.pkIndices()}}
		if st.kind == "select" {
			res.ResultMetadata = &message.RowsMetadata{ColumnCount: int32(len(st.out)), Columns: st.out}
		}
		return res
	case *message.Query:
		s.note("QUERY", m.Query)
		return s.run(s.parse(m.Query), m.Options)
	case *message.Execute:
		st := s.prep[string(m.QueryId)]
		if st == nil {
			return &message.Unprepared{ErrorMessage: "unprepared", Id: m.QueryId}
		}
		s.note("EXECUTE", st.text)
		return s.run(st, m.Options)
	}
	return &message.ProtocolError{ErrorMessage: fmt.Sprintf("unsupported message %T", m)} // BATCH among them
}

func (s *Cluster) note(op, cql string) {
	s.Seen[op+" "+cql]++
	if s.Fail != nil {
		if m := s.Fail(op, cql); m != nil {
			panic(fail{m})
		}
	}
}
