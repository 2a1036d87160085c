package scyllatest

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// A generation is a set of streams that is used from a time on.
type generation struct {
	start int64 // microseconds
	nodes []vnode
}

// A vnode is a range of tokens, up to end, with its streams. A tablet is one too,
// with one stream.
type vnode struct {
	end     int64
	streams [][]byte
}

// streamID is token:64, random:38, vnode:22, version:4, the version being 1.
func streamID(token int64, vnode int) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(token))
	return binary.BigEndian.AppendUint64(b, (rand.Uint64()>>26)<<26|uint64(vnode)<<4|1)
}

// newGeneration divides the ring into n ranges. The tokens of a range's streams are
// inside it, and the last one's is its end.
func newGeneration(start int64, n, perNode int) *generation {
	g := &generation{start: start}
	step := math.MaxUint64/uint64(n) + 1 // 0 for one range: the whole ring
	for i := range n {
		from := uint64(i) * step // of the ring, that begins at the least token
		width := step
		if n == 1 {
			width = math.MaxUint64
		}
		v := vnode{end: int64(from + width - 1 + 1<<63)}
		if i == n-1 {
			v.end = math.MaxInt64
		}
		for s := range perNode {
			at := from + width/uint64(perNode)*uint64(s+1) - 1
			if s == perNode-1 {
				at = uint64(v.end) + 1<<63
			}
			v.streams = append(v.streams, streamID(int64(at+1<<63), i))
		}
		g.nodes = append(g.nodes, v)
	}
	return g
}

// of is the stream of a partition.
func (g *generation) of(token int64) []byte {
	i, _ := slices.BinarySearchFunc(g.nodes, token, func(v vnode, t int64) int {
		if v.end < t {
			return -1
		}
		return 1
	})
	if i == len(g.nodes) {
		i = 0
	}
	if s := g.nodes[i].streams; len(s) > 0 {
		return s[uint64(token)%uint64(len(s))]
	}
	return nil
}

func (g *generation) all() (ids [][]byte) {
	for _, v := range g.nodes {
		ids = append(ids, v.streams...)
	}
	return ids
}

func millis(micros int64) []byte { return encodeInt(micros/1000, 8) }

// NewGeneration announces a generation of streams, as the join of a node does, that
// begins at a time: a future one is announced ahead. It returns the ids of its
// streams.
func (c *Cluster) NewGeneration(at time.Time, streamsPerVnode, vnodes int) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := newGeneration(at.UnixMilli()*1000, vnodes, streamsPerVnode)
	for _, v := range g.nodes {
		ids := slices.SortedFunc(slices.Values(v.streams), blobType.compare)
		c.sys("system_distributed.cdc_streams_descriptions_v2").put(map[string][]byte{"time": millis(g.start), "range_end": encodeInt(v.end, 8), "streams": collect(len(ids), ids...)})
	}
	c.addGeneration(g)
	return g.all()
}

// EmptyGeneration announces a generation whose streams are not to be read: a client
// has to wait for them, and nothing can be written to it.
func (c *Cluster) EmptyGeneration(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addGeneration(&generation{start: at.UnixMilli() * 1000})
}

func (c *Cluster) addGeneration(g *generation) {
	c.sys("system_distributed.cdc_generation_timestamps").put(map[string][]byte{"key": []byte("timestamps"), "time": millis(g.start)})
	c.generations = append(c.generations, g)
	slices.SortFunc(c.generations, func(a, b *generation) int { return int(a.start/1000 - b.start/1000) })
}

// DropGenerations forgets the generations before a time, as is done with those whose
// log rows have all expired.
func (c *Cluster) DropGenerations(before time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generations = slices.DeleteFunc(c.generations, func(g *generation) bool {
		if g.start >= before.UnixMicro() {
			return false
		}
		c.sys("system_distributed.cdc_generation_timestamps").purge([][]byte{[]byte("timestamps")}, millis(g.start))
		c.sys("system_distributed.cdc_streams_descriptions_v2").purge([][]byte{millis(g.start)})
		return true
	})
}

// SplitTablets divides a table of a keyspace with tablets into so many, from now on:
// it gets a new set of streams. It returns their ids.
func (c *Cluster) SplitTablets(keyspace, table string, n int) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.splitTablets(c.keyspaces[keyspace].tables[table], n)
}

func (c *Cluster) splitTablets(t *table, n int) [][]byte {
	name := t.ks + "." + t.name
	sets := c.tabletStreams[name]
	start := c.nowMicros() / 1000 * 1000
	if len(sets) > 0 {
		start = max(start, sets[len(sets)-1].start+1000)
	} else {
		start -= 1000 // so that a write right away finds it
	}
	g := newGeneration(start, n, 1)
	put := func(state int64, id []byte) {
		c.sys("system.cdc_streams").put(map[string][]byte{"keyspace_name": []byte(t.ks), "table_name": []byte(t.name), "timestamp": millis(start), "stream_state": encodeInt(state, 1), "stream_id": id})
	}
	for _, id := range g.all() {
		put(0, id)
		put(2, id)
	}
	if len(sets) > 0 {
		for _, id := range sets[len(sets)-1].all() {
			put(1, id)
		}
	}
	c.sys("system.cdc_timestamps").put(map[string][]byte{"keyspace_name": []byte(t.ks), "table_name": []byte(t.name), "timestamp": millis(start)})
	c.tabletStreams[name] = append(sets, g)
	return g.all()
}

// leeway is how far a write may be from the time of the cluster.
const leeway = 5 * 1e6

// stream is the stream of a write at a time in the log of t.
func (c *Cluster) stream(e *env, t *table, token, ts int64) []byte {
	sets := c.generations
	if c.keyspaces[t.ks].tablets {
		sets = c.tabletStreams[t.ks+"."+t.name]
	}
	at := func(ts int64) int {
		i := -1
		for j, g := range sets {
			if g.start <= ts {
				i = j
			}
		}
		return i
	}
	i := at(ts)
	switch shown := func(ts int64) string { return time.UnixMicro(ts).UTC().Format("2006/01/02 15:04:05.000000") }; {
	case ts > e.micros+leeway:
		panic(invalid("cdc: attempted to get a stream \"from the future\" (%s; current server time: %s). With CDC you cannot send writes with timestamps arbitrarily into the future, because we don't know what streams will be used at that time.", shown(ts), shown(e.micros)))
	case ts <= e.micros-leeway && i != at(e.micros), i < 0:
		panic(invalid("cdc: attempted to get a stream \"from the past\" (%s; current server time: %s). With CDC you cannot send writes with timestamps too far into the past, because that would break consistency properties.", shown(ts), shown(e.micros)))
	}
	id := sets[i].of(token)
	if id == nil {
		panic(invalid("cdc: the generation has no streams"))
	}
	return id
}

type hold struct {
	table string
	until int64 // microseconds; 0 is until it is ended
	over  bool
}

type heldLog struct {
	*hold
	m *mod
}

// HoldLog keeps back what writes to a table, "keyspace.table", add to its log until
// release is called: then it appears, with the times of the writes. Base rows are
// seen at once.
func (c *Cluster) HoldLog(table string) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &hold{table: table}
	c.holding = append(c.holding, h)
	return func() {
		c.mu.Lock()
		h.over = true
		c.holding = slices.DeleteFunc(c.holding, func(x *hold) bool { return x == h })
		c.mu.Unlock()
		c.release()
	}
}

// DelayLog keeps back what the writes from now on add to a table's log, each for a
// time of the cluster's clock.
func (c *Cluster) DelayLog(table string, d time.Duration) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &hold{table: table, until: d.Microseconds()}
	c.holding = append(c.holding, h)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.holding = slices.DeleteFunc(c.holding, func(x *hold) bool { return x == h })
	}
}

// hold keeps a log row back if it is to be.
func (c *Cluster) hold(m *mod) bool {
	for _, h := range c.holding {
		if h.table != m.t.base.ks+"."+m.t.base.name {
			continue
		}
		if h.until > 0 {
			h = &hold{table: h.table, until: c.nowMicros() + h.until}
		}
		c.held = append(c.held, &heldLog{h, m})
		return true
	}
	return false
}

// release lets what was held back appear when it is time.
func (c *Cluster) release() {
	c.mu.RLock()
	some := len(c.held) > 0
	c.mu.RUnlock()
	if !some {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.nowMicros()
	c.held = slices.DeleteFunc(c.held, func(h *heldLog) bool {
		if !h.over && (h.until == 0 || h.until > now) {
			return false
		}
		if l := c.keyspaces[h.m.t.ks].tables[h.m.t.name]; l != nil {
			h.m.t = l
			l.makePart(h.m.pk).apply(h.m, now/1e6)
		}
		return true
	})
}
