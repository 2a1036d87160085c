package scyllatest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/datastax/go-cassandra-native-protocol/datatype"
	"github.com/datastax/go-cassandra-native-protocol/frame"
	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

// A conn is a client's connection.
type conn struct {
	c     *Cluster
	node  *node
	net   net.Conn
	shard int
	admin bool // without the wire
	use   string
	user  string
	ready bool // logged in

	version primitive.ProtocolVersion // of the last request

	out    sync.Mutex // of what follows
	w      *bufio.Writer
	events []primitive.EventType
	told   primitive.ProtocolVersion // version of events
}

func (k *conn) Close() error { return k.net.Close() }

// serve accepts connections to a node until it is stopped.
func (c *Cluster) serve(n *node) {
	n.mu.Lock()
	ln := n.ln
	n.mu.Unlock()
	c.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			if c.tls != nil {
				nc = tls.Server(nc, c.tls)
			}
			n.mu.Lock()
			if n.ln != ln {
				n.mu.Unlock()
				_ = nc.Close()
				return
			}
			k := &conn{c: c, node: n, net: nc, shard: n.shard % c.shards, w: bufio.NewWriterSize(nc, 64<<10)}
			n.shard++
			n.conns[k] = true
			n.mu.Unlock()
			c.wg.Go(func() {
				k.serve()
				_ = nc.Close()
				n.mu.Lock()
				delete(n.conns, k)
				n.mu.Unlock()
			})
		}
	})
}

// serve answers requests in the order in which they come; those that are slow on
// purpose hold up no others.
func (k *conn) serve() {
	codec := frame.NewRawCodec()
	r := bufio.NewReaderSize(k.net, 64<<10)
	for {
		head, err := r.Peek(9)
		if err != nil {
			return
		}
		if v := head[0] & 0x7f; v != 3 && v != 4 {
			id := int16(binary.BigEndian.Uint16(head[2:]))
			k.send(primitive.ProtocolVersion4, id, &message.ProtocolError{ErrorMessage: fmt.Sprintf("Invalid or unsupported protocol version (%d); the lowest supported version is 3 and the greatest is 4", v)})
			return
		}
		raw, err := codec.DecodeRawFrame(r)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				k.send(primitive.ProtocolVersion4, 0, &message.ProtocolError{ErrorMessage: err.Error()})
			}
			return
		}
		f, err := codec.ConvertFromRawFrame(raw)
		id := raw.Header.StreamId
		if err != nil {
			k.send(raw.Header.Version, id, &message.ProtocolError{ErrorMessage: err.Error()})
			continue
		}
		k.version = f.Header.Version
		reply, fault := k.handle(f.Body.Message)
		switch {
		case fault != nil && fault.drop:
			return
		case fault != nil && fault.delay > 0:
			k.c.wg.Go(func() {
				time.Sleep(fault.delay)
				k.send(f.Header.Version, id, reply)
			})
		default:
			k.send(f.Header.Version, id, reply)
		}
	}
}

func (k *conn) send(v primitive.ProtocolVersion, id int16, m message.Message) {
	k.out.Lock()
	defer k.out.Unlock()
	codec := frame.NewRawCodec()
	var err error
	if own, ok := m.(interface{ body() []byte }); ok {
		body := own.body()
		err = codec.EncodeRawFrame(&frame.RawFrame{Header: &frame.Header{IsResponse: true, Version: v, StreamId: id, OpCode: m.GetOpCode()}, Body: body}, k.w)
	} else {
		err = codec.EncodeFrame(frame.NewFrame(v, id, m), k.w)
	}
	if err != nil {
		_ = k.net.Close()
		return
	}
	_ = k.w.Flush() // a connection that is gone shows when it is read from
}

// A rowsReply is a page of rows.
type rowsReply struct {
	message.RowsResult
	columns []*message.ColumnMetadata
	types   []*ctype
	rows    [][][]byte
	state   []byte
	skip    bool
}

// body encodes the page at once: rows are what there is most of.
func (r *rowsReply) body() []byte {
	size := 64
	for _, row := range r.rows {
		for _, v := range row {
			size += 4 + len(v)
		}
	}
	b := make([]byte, 0, size+32*len(r.columns))
	b = binary.BigEndian.AppendUint32(b, uint32(primitive.ResultTypeRows))
	var flags uint32
	if r.state != nil {
		flags |= uint32(primitive.RowsFlagHasMorePages)
	}
	if r.skip {
		flags |= uint32(primitive.RowsFlagNoMetadata)
	} else if len(r.columns) > 0 {
		flags |= uint32(primitive.RowsFlagGlobalTablesSpec)
	}
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.columns)))
	if r.state != nil {
		b = appendSized(b, r.state)
	}
	if !r.skip && len(r.columns) > 0 {
		b = appendString(appendString(b, r.columns[0].Keyspace), r.columns[0].Table)
		for _, c := range r.columns {
			b = appendString(b, c.Name)
			var buf bytes.Buffer
			if err := datatype.WriteDataType(c.Type, &buf, primitive.ProtocolVersion4); err != nil {
				panic(err)
			}
			b = append(b, buf.Bytes()...)
		}
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.rows)))
	for _, row := range r.rows {
		for _, v := range row {
			b = appendSized(b, v)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// casUnknown is error 0x1700, which the codec knows of version 5 only.
type casUnknown struct {
	message.ServerError
	text               string
	received, blockFor int32
}

func (m *casUnknown) GetErrorMessage() string { return m.text }

func (m *casUnknown) body() []byte {
	b := appendString(binary.BigEndian.AppendUint32(nil, 0x1700), m.text)
	b = binary.BigEndian.AppendUint16(b, uint16(primitive.ConsistencyLevelSerial))
	b = binary.BigEndian.AppendUint32(b, uint32(m.received))
	return binary.BigEndian.AppendUint32(b, uint32(m.blockFor))
}

// announce sends an event to all connections that registered for its kind.
func (c *Cluster) announce(kind primitive.EventType, m message.Message) {
	for _, n := range c.members() {
		n.mu.Lock()
		var conns []*conn
		for k := range n.conns {
			conns = append(conns, k)
		}
		n.mu.Unlock()
		for _, k := range conns {
			k.out.Lock()
			wants, v := slices.Contains(k.events, kind), k.told
			k.out.Unlock()
			if wants {
				c.wg.Go(func() { k.send(v, -1, m) })
			}
		}
	}
}

// handle answers one request. A failure below is an error for the client.
func (k *conn) handle(m message.Message) (message.Message, *Fault) {
	switch m := m.(type) {
	case *message.Options:
		s := strconv.Itoa
		return &message.Supported{Options: map[string][]string{
			"CQL_VERSION": {"3.3.1"}, "COMPRESSION": {},
			"SCYLLA_SHARD": {s(k.shard)}, "SCYLLA_NR_SHARDS": {s(k.c.shards)}, "SCYLLA_SHARDING_IGNORE_MSB": {"12"},
			"SCYLLA_PARTITIONER":        {"org.apache.cassandra.dht.Murmur3Partitioner"},
			"SCYLLA_SHARDING_ALGORITHM": {"biased-token-round-robin"},
		}}, nil
	case *message.Startup:
		if m.Options["COMPRESSION"] != "" {
			return &message.ProtocolError{ErrorMessage: "Unknown compression algorithm: " + m.Options["COMPRESSION"]}, nil
		}
		if k.c.user != "" {
			return &message.Authenticate{Authenticator: "org.apache.cassandra.auth.PasswordAuthenticator"}, nil
		}
		k.ready = true
		return &message.Ready{}, nil
	case *message.AuthResponse:
		parts := bytes.Split(m.Token, []byte{0})
		if len(parts) == 3 && k.c.login(string(parts[1]), string(parts[2])) {
			k.user, k.ready = string(parts[1]), true
			return &message.AuthSuccess{}, nil
		}
		return &message.AuthenticationError{ErrorMessage: "Username and/or password are incorrect"}, nil
	}
	if !k.ready {
		return &message.ProtocolError{ErrorMessage: "STARTUP must be sent first"}, nil
	}
	if m, ok := m.(*message.Register); ok {
		k.out.Lock()
		k.events, k.told = m.EventTypes, k.version
		k.out.Unlock()
		return &message.Ready{}, nil
	}
	req, ok := k.request(m)
	if !ok {
		return &message.ProtocolError{ErrorMessage: fmt.Sprintf("unsupported message %T", m)}, nil
	}
	fault := k.c.note(req)
	if fault != nil && !fault.after && (fault.drop || fault.reply != nil) {
		return fault.reply, fault
	}
	reply := k.run(m, req.CQL)
	if fault != nil && fault.reply != nil {
		reply = fault.reply
	}
	return reply, fault
}

// request describes what a client asks for.
func (k *conn) request(m message.Message) (r Request, ok bool) {
	r = Request{Node: k.node.addr.String(), User: k.user}
	opts := func(o *message.QueryOptions) {
		if o == nil {
			return
		}
		r.Consistency = o.Consistency.String()
		if o.SerialConsistency != nil {
			r.Serial = o.SerialConsistency.String()
		}
		if len(o.PagingState) >= 35 {
			r.Page = int(binary.BigEndian.Uint64(o.PagingState[27:]))
		}
	}
	switch m := m.(type) {
	case *message.Prepare:
		r.Op, r.CQL = "PREPARE", m.Query
	case *message.Query:
		r.Op, r.CQL = "QUERY", m.Query
		opts(m.Options)
	case *message.Execute:
		r.Op, r.CQL = "EXECUTE", k.c.text(m.QueryId)
		opts(m.Options)
	case *message.Batch:
		r.Op, r.Consistency = "BATCH", m.Consistency.String()
		for i, ch := range m.Children {
			q := ch.Query
			if ch.Id != nil {
				q = k.c.text(ch.Id)
			}
			if i > 0 {
				r.CQL += "; "
			}
			r.CQL += q
		}
	default:
		return r, false
	}
	return r, true
}
