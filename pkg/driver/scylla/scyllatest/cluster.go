package scyllatest

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

// A Cluster is the double. Its methods are safe for concurrent use.
type Cluster struct {
	config
	ring atomic.Pointer[[]*node]

	mu            sync.RWMutex // of the schema and of all tables
	keyspaces     map[string]*keyspace
	schemaVersion int
	prepared      map[string]*plan
	prepTexts     map[string]string
	roles         map[string]*role
	generations   []*generation
	tabletStreams map[string][]*generation // by keyspace.table
	held          []*heldLog
	holding       []*hold

	offset atomic.Int64 // of the clock, in microseconds
	last   atomic.Int64 // time that was given last

	watch watch
	wg    sync.WaitGroup
}

type config struct {
	count      int
	dcs        []string
	shards     int
	tablets    bool
	user, pass string
	tls        *tls.Config
	version    string
	shortPages int
	emptyPages bool
	keepLogs   bool
	noStreams  bool
	vnodes     int
	perVnode   int
	genStart   time.Duration
}

// An Option changes what New and Start make.
type Option func(*config)

// Nodes makes a cluster of n nodes, at 127.0.0.1 and the addresses after it, with
// one port.
func Nodes(n int) Option { return func(c *config) { c.count = n } }

// Datacenters puts the nodes into datacenters, in turn. The default is one,
// datacenter1.
func Datacenters(names ...string) Option { return func(c *config) { c.dcs = names } }

// Shards makes each node tell of n shards.
func Shards(n int) Option { return func(c *config) { c.shards = n } }

// Tablets makes keyspaces use tablets unless they say otherwise.
func Tablets() Option { return func(c *config) { c.tablets = true } }

// Password asks for a name and password, those of the first role, which may do
// everything.
func Password(user, password string) Option {
	return func(c *config) { c.user, c.pass = user, password }
}

// TLS has connections made by TLS.
func TLS(conf *tls.Config) Option { return func(c *config) { c.tls = conf } }

// Version is what system.versions tells.
func Version(v string) Option { return func(c *config) { c.version = v } }

// ShortPages gives at most n rows a page where pages are asked for: pages that
// are shorter than asked, and are not the last, are what a client has to expect.
func ShortPages(n int) Option { return func(c *config) { c.shortPages = n } }

// EmptyPages gives every other page without rows, though more follow: so does a
// ScyllaDB that has read much and found little.
func EmptyPages() Option { return func(c *config) { c.emptyPages = true } }

// KeepLogs leaves the log of a table there when its option cdc is switched off, and
// goes on with it when the option is switched on again. ScyllaDB's documentation of
// early releases says that the log goes, which is the default; it does not say that
// of all.
func KeepLogs() Option { return func(c *config) { c.keepLogs = true } }

// Generation sets the first generation of streams: how long ago it began, its number
// of vnodes and streams for each. The default is an hour, 2 and 2.
func Generation(ago time.Duration, vnodes, streams int) Option {
	return func(c *config) { c.genStart, c.vnodes, c.perVnode = ago, vnodes, streams }
}

// NoGeneration begins without a generation of streams.
func NoGeneration() Option { return func(c *config) { c.noStreams = true } }

// Start starts a double that lives as long as the test. The test fails if a client
// sent statements that the double does not know, unless they were expected.
func Start(t testing.TB, opts ...Option) *Cluster {
	t.Helper()
	c, err := New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		for _, u := range c.Unknown() {
			t.Errorf("scyllatest: a statement that the double does not know: %s", u)
		}
	})
	return c
}

// New starts a double.
func New(opts ...Option) (*Cluster, error) {
	c := &Cluster{
		config:    config{count: 1, dcs: []string{"datacenter1"}, shards: 1, version: "2026.1.0-double", vnodes: 2, perVnode: 2, genStart: time.Hour},
		keyspaces: map[string]*keyspace{}, prepared: map[string]*plan{}, prepTexts: map[string]string{}, roles: map[string]*role{}, tabletStreams: map[string][]*generation{},
	}
	for _, o := range opts {
		o(&c.config)
	}
	if c.user != "" {
		c.roles[c.user] = &role{password: c.pass, super: true, login: true}
	}
	c.makeSystem()
	if err := c.listen(); err != nil {
		return nil, err
	}
	c.describeNodes()
	if !c.noStreams {
		c.NewGeneration(c.Now().Add(-c.genStart), c.perVnode, c.vnodes)
	}
	for _, n := range c.members() {
		c.serve(n)
	}
	return c, nil
}

// Close stops all nodes and waits until nothing runs any more.
func (c *Cluster) Close() {
	for _, n := range c.members() {
		n.stop()
	}
	c.wg.Wait()
}

// Hosts are the nodes, each "address:port".
func (c *Cluster) Hosts() (hosts []string) {
	for _, n := range c.members() {
		hosts = append(hosts, n.addr.String())
	}
	return hosts
}

// A node is one server of the cluster.
type node struct {
	addr   netip.AddrPort
	dc     string
	hostID []byte
	tokens []int64

	local, peers *table

	mu    sync.Mutex
	ln    net.Listener
	conns map[*conn]bool
	shard int // of the next connection
}

const tokensPerNode = 4

func (n *node) tokenTexts() (s []string) {
	for _, t := range n.tokens {
		s = append(s, strconv.FormatInt(t, 10))
	}
	return s
}

func (c *Cluster) datacenters() []string {
	var dcs []string
	for _, n := range c.members() {
		dcs = append(dcs, n.dc)
	}
	slices.Sort(dcs)
	return slices.Compact(dcs)
}

// listen takes one port on the address of each node.
func (c *Cluster) listen() (err error) {
	for range 20 {
		var nodes []*node
		port := uint16(0)
		for i := range c.count {
			n, e := c.newNode(i, c.dcs[i%len(c.dcs)], port)
			if err = e; err != nil {
				break
			}
			step := ^uint64(0)/uint64(c.count*tokensPerNode) + 1
			for k := range tokensPerNode {
				n.tokens = append(n.tokens, int64(uint64(k*c.count+i)*step+1<<63+step/2))
			}
			port = n.addr.Port()
			nodes = append(nodes, n)
		}
		if err == nil {
			c.ring.Store(&nodes)
			return nil
		}
		for _, n := range nodes {
			_ = n.ln.Close()
		}
	}
	return err
}

// newNode listens at the address of a node; port 0 is any.
func (c *Cluster) newNode(i int, dc string, port uint16) (*node, error) {
	n := &node{dc: dc, conns: map[*conn]bool{}, hostID: []byte("double\x40\x00\x80\x00node\x00" + string(rune(i+1)))}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}), port).String())
	if err != nil {
		return nil, err
	}
	n.ln, n.addr = ln, netip.MustParseAddrPort(ln.Addr().String())
	return n, nil
}

func (c *Cluster) members() []*node { return *c.ring.Load() }

// AddNode has another node join in a datacenter, which may be a new one, and returns
// its address. Where the join should begin a new generation, NewGeneration does it.
func (c *Cluster) AddNode(dc string) (string, error) {
	c.mu.Lock()
	old := c.members()
	n, err := c.newNode(len(old), dc, old[0].addr.Port())
	if err != nil {
		c.mu.Unlock()
		return "", err
	}
	for k := range tokensPerNode {
		n.tokens = append(n.tokens, murmur3([]byte{byte(len(old)), byte(k)}))
	}
	all := append(slices.Clone(old), n)
	c.ring.Store(&all)
	c.describeNodes()
	c.mu.Unlock()
	c.serve(n)
	c.announce(primitive.EventTypeTopologyChange, &message.TopologyChangeEvent{ChangeType: primitive.TopologyChangeTypeNewNode, Address: n.inet()})
	c.announce(primitive.EventTypeStatusChange, &message.StatusChangeEvent{ChangeType: primitive.StatusChangeTypeUp, Address: n.inet()})
	return n.addr.String(), nil
}

func (n *node) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ln != nil {
		_ = n.ln.Close()
	}
	n.ln = nil
	for k := range n.conns {
		_ = k.Close()
	}
}

func (n *node) up() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ln != nil
}

// StopNode stops a node and ends its connections; the others tell of it.
func (c *Cluster) StopNode(i int) {
	c.members()[i].stop()
	c.announce(primitive.EventTypeStatusChange, &message.StatusChangeEvent{ChangeType: primitive.StatusChangeTypeDown, Address: c.members()[i].inet()})
}

// StartNode starts a node that was stopped, at the same address.
func (c *Cluster) StartNode(i int) error {
	n := c.members()[i]
	ln, err := net.Listen("tcp", n.addr.String())
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.ln = ln
	n.mu.Unlock()
	c.serve(n)
	c.announce(primitive.EventTypeStatusChange, &message.StatusChangeEvent{ChangeType: primitive.StatusChangeTypeUp, Address: n.inet()})
	return nil
}

func (n *node) inet() *primitive.Inet {
	return &primitive.Inet{Addr: n.addr.Addr().AsSlice(), Port: int32(n.addr.Port())}
}

// Now is the cluster's clock.
func (c *Cluster) Now() time.Time { return time.UnixMicro(c.nowMicros()) }

// Advance sets the cluster's clock ahead: what has a TTL expires, and what a client
// writes without a time of its own is later.
func (c *Cluster) Advance(d time.Duration) { c.offset.Add(d.Microseconds()) }

func (c *Cluster) nowMicros() int64 { return time.Now().UnixMicro() + c.offset.Load() }

// nextMicros is a time that was not given before.
func (c *Cluster) nextMicros() int64 {
	for {
		last := c.last.Load()
		next := max(c.nowMicros(), last+1)
		if c.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// listKey is the key of a list's element: after all before it, or before them.
func (c *Cluster) listKey(before bool) []byte {
	at := c.nextMicros()
	if before {
		at = 2*1262304000e6 - at // mirrored at 2010, as Cassandra and ScyllaDB do
	}
	var rest [8]byte
	binary.BigEndian.PutUint64(rest[:], 0xaf55000000000001)
	return timeUUID(at, 0, rest)
}

// Exec runs a statement without the wire, as an administrator that may write system
// tables and logs too. Names need their keyspace.
func (c *Cluster) Exec(cql string) error {
	_, err := c.exec(cql, nil)
	return err
}

// ExecAt is Exec of a write at a time: it appears now, and counts as made then. What
// reads a log by time finds its rows late.
func (c *Cluster) ExecAt(at time.Time, cql string) error {
	micros := at.UnixMicro()
	_, err := c.exec(cql, &micros)
	return err
}

// MustExec runs statements in their order; the first error ends the test.
func (c *Cluster) MustExec(t testing.TB, cql ...string) {
	t.Helper()
	for _, q := range cql {
		if err := c.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

// Rows runs a SELECT without the wire, and gives the rows as cqlsh would show them.
func (c *Cluster) Rows(cql string) (columns []string, rows [][]string, err error) {
	reply, err := c.exec(cql, nil)
	if err != nil {
		return nil, nil, err
	}
	r, ok := reply.(*rowsReply)
	if !ok {
		return nil, nil, errors.New("not a SELECT")
	}
	for _, m := range r.columns {
		columns = append(columns, m.Name)
	}
	for _, row := range r.rows {
		var s []string
		for i, v := range row {
			s = append(s, r.types[i].show(v))
		}
		rows = append(rows, s)
	}
	return columns, rows, nil
}

// LogRows gives the log of a table, "keyspace.table", in the order of streams, times
// and numbers: a map for each row, without what is null.
func (c *Cluster) LogRows(table string) (rows []map[string]string, err error) {
	ks, name, _ := strings.Cut(table, ".")
	columns, all, err := c.Rows("SELECT * FROM " + ident(ks) + "." + ident(name+logSuffix))
	for _, r := range all {
		m := map[string]string{}
		for i, v := range r {
			if v != "null" {
				m[columns[i]] = v
			}
		}
		rows = append(rows, m)
	}
	return rows, err
}

func (c *Cluster) exec(cql string, at *int64) (reply message.Message, err error) {
	k := &conn{c: c, node: c.members()[0], admin: true}
	reply = k.query(&message.Query{Query: cql, Options: &message.QueryOptions{DefaultTimestamp: at}}, true)
	if e, ok := reply.(message.Error); ok {
		return nil, errors.New(e.GetErrorMessage())
	}
	return reply, nil
}
