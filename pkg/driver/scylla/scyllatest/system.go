package scyllatest

import (
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

const tableOptions = `bloom_filter_fp_chance double, caching frozen<map<text, text>>, comment text, compaction frozen<map<text, text>>,
 compression frozen<map<text, text>>, crc_check_chance double, dclocal_read_repair_chance double, default_time_to_live int,
 extensions frozen<map<text, blob>>, gc_grace_seconds int, max_index_interval int, memtable_flush_period_in_ms int, min_index_interval int,
 read_repair_chance double, speculative_retry text`

// systemTables are the tables of a node that clients look at. A ScyllaDB has more.
var systemTables = []string{
	`system.local (key text PRIMARY KEY, bootstrapped text, broadcast_address inet, cluster_name text, cql_version text, data_center text, gossip_generation int, host_id uuid, listen_address inet, native_protocol_version text, partitioner text, rack text, release_version text, rpc_address inet, schema_version uuid, thrift_version text, tokens set<text>)`,
	`system.peers (peer inet PRIMARY KEY, data_center text, host_id uuid, preferred_ip inet, rack text, release_version text, rpc_address inet, schema_version uuid, supported_features text, tokens set<text>)`,
	`system.versions (key text PRIMARY KEY, build_id text, build_mode text, version text)`,
	`system.size_estimates (keyspace_name text, table_name text, range_start text, range_end text, mean_partition_size bigint, partitions_count bigint, PRIMARY KEY (keyspace_name, table_name, range_start, range_end))`,
	`system.cdc_timestamps (keyspace_name text, table_name text, timestamp timestamp, PRIMARY KEY ((keyspace_name, table_name), timestamp)) WITH CLUSTERING ORDER BY (timestamp DESC)`,
	`system.cdc_streams (keyspace_name text, table_name text, timestamp timestamp, stream_state tinyint, stream_id blob, PRIMARY KEY ((keyspace_name, table_name), timestamp, stream_state, stream_id)) WITH CLUSTERING ORDER BY (timestamp DESC, stream_state ASC, stream_id ASC)`,
	`system_schema.keyspaces (keyspace_name text PRIMARY KEY, durable_writes boolean, replication frozen<map<text, text>>)`,
	`system_schema.tables (keyspace_name text, table_name text, ` + tableOptions + `, flags frozen<set<text>>, id uuid, PRIMARY KEY (keyspace_name, table_name))`,
	`system_schema.columns (keyspace_name text, table_name text, column_name text, clustering_order text, column_name_bytes blob, kind text, position int, type text, PRIMARY KEY (keyspace_name, table_name, column_name))`,
	`system_schema.dropped_columns (keyspace_name text, table_name text, column_name text, dropped_time timestamp, type text, PRIMARY KEY (keyspace_name, table_name, column_name))`,
	`system_schema.types (keyspace_name text, type_name text, field_names frozen<list<text>>, field_types frozen<list<text>>, PRIMARY KEY (keyspace_name, type_name))`,
	`system_schema.indexes (keyspace_name text, table_name text, index_name text, kind text, options frozen<map<text, text>>, PRIMARY KEY (keyspace_name, table_name, index_name))`,
	`system_schema.views (keyspace_name text, view_name text, base_table_id uuid, base_table_name text, ` + tableOptions + `, id uuid, include_all_columns boolean, where_clause text, PRIMARY KEY (keyspace_name, view_name))`,
	`system_schema.functions (keyspace_name text, function_name text, argument_types frozen<list<text>>, argument_names frozen<list<text>>, body text, called_on_null_input boolean, language text, return_type text, PRIMARY KEY (keyspace_name, function_name, argument_types))`,
	`system_schema.aggregates (keyspace_name text, aggregate_name text, argument_types frozen<list<text>>, final_func text, initcond text, return_type text, state_func text, state_type text, PRIMARY KEY (keyspace_name, aggregate_name, argument_types))`,
	`system_schema.triggers (keyspace_name text, table_name text, trigger_name text, options frozen<map<text, text>>, PRIMARY KEY (keyspace_name, table_name, trigger_name))`,
	`system_schema.scylla_tables (keyspace_name text, table_name text, cdc map<text, text>, in_memory boolean, partitioner text, tablets map<text, text>, version uuid, PRIMARY KEY (keyspace_name, table_name))`,
	`system_schema.scylla_keyspaces (keyspace_name text PRIMARY KEY, consistency text, initial_tablets int, storage_options map<text, text>, storage_type text)`,
	`system_distributed.cdc_generation_timestamps (key text, time timestamp, expired timestamp, PRIMARY KEY (key, time)) WITH CLUSTERING ORDER BY (time DESC)`,
	`system_distributed.cdc_streams_descriptions_v2 (time timestamp, range_end bigint, streams frozen<set<blob>>, PRIMARY KEY (time, range_end))`,
}

func (c *Cluster) sys(name string) *table {
	ks, t, _ := strings.Cut(name, ".")
	return c.keyspaces[ks].tables[t]
}

func (c *Cluster) makeSystem() {
	for _, ks := range []string{"system", "system_schema", "system_distributed"} {
		c.keyspaces[ks] = &keyspace{name: ks, system: true, durable: true, tables: map[string]*table{}, types: map[string]*userType{},
			repl: map[string]string{"class": "org.apache.cassandra.locator.EverywhereStrategy"}}
	}
	for _, def := range systemTables {
		st, _, err := parse("CREATE TABLE " + def)
		if err != nil {
			panic(fmt.Sprint(def, err))
		}
		ct := st.(*createTableStmt)
		c.keyspaces[ct.table.ks].tables[ct.table.name] = c.makeTable(c.keyspaces[ct.table.ks], ct)
	}
	for _, k := range c.keyspaces {
		c.describeKeyspace(k)
		for _, t := range k.tables {
			c.describeTable(t)
		}
	}
	c.sys("system.versions").put(map[string][]byte{"key": []byte("local"), "version": []byte(c.version), "build_mode": []byte("double"), "build_id": []byte("double")})
}

func texts(m map[string]string) []byte {
	var parts [][]byte
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, []byte(k), []byte(m[k]))
	}
	return collect(len(m), parts...)
}

func textSet(s ...string) []byte {
	var parts [][]byte
	for _, x := range s {
		parts = append(parts, []byte(x))
	}
	return collect(len(s), parts...)
}

func (c *Cluster) describeKeyspace(k *keyspace) {
	c.sys("system_schema.keyspaces").put(map[string][]byte{"keyspace_name": []byte(k.name), "durable_writes": {byte(b2i(k.durable))}, "replication": texts(k.repl)})
	if k.tablets {
		c.sys("system_schema.scylla_keyspaces").put(map[string][]byte{"keyspace_name": []byte(k.name), "initial_tablets": encodeInt(0, 4)})
	}
}

func (c *Cluster) undescribeKeyspace(ks string) {
	for _, t := range []string{"keyspaces", "scylla_keyspaces", "tables", "columns", "types", "indexes", "views", "scylla_tables"} {
		c.sys("system_schema." + t).purge([][]byte{[]byte(ks)})
	}
}

func (c *Cluster) undescribeTable(ks, name string) {
	for _, t := range []string{"tables", "columns", "indexes", "views", "scylla_tables"} {
		c.sys("system_schema."+t).purge([][]byte{[]byte(ks)}, []byte(name))
	}
}

func (c *Cluster) undescribeType(ks, name string) {
	c.sys("system_schema.types").purge([][]byte{[]byte(ks)}, []byte(name))
}

func (c *Cluster) describeType(u *userType) {
	var types []string
	for _, t := range u.types {
		types = append(types, t.String())
	}
	c.sys("system_schema.types").put(map[string][]byte{"keyspace_name": []byte(u.ks), "type_name": []byte(u.name), "field_names": textSet(u.fields...), "field_types": textSet(types...)})
}

// describeTable writes what system_schema has of a table.
func (c *Cluster) describeTable(t *table) {
	ks, name := []byte(t.ks), []byte(t.name)
	row := map[string][]byte{"keyspace_name": ks, "table_name": name, "id": t.id, "comment": []byte(t.opts["comment"].text),
		"flags": textSet("compound"), "speculative_retry": []byte("99.0PERCENTILE"),
		"caching":     texts(map[string]string{"keys": "ALL", "rows_per_partition": "ALL"}),
		"compaction":  texts(map[string]string{"class": "SizeTieredCompactionStrategy"}),
		"compression": texts(map[string]string{"sstable_compression": "org.apache.cassandra.io.compress.LZ4Compressor"}),
	}
	for n, v := range map[string]float64{"bloom_filter_fp_chance": 0.01, "crc_check_chance": 1, "dclocal_read_repair_chance": 0, "read_repair_chance": 0} {
		row[n] = native("double").encode(tokNumber, strconv.FormatFloat(v, 'g', -1, 64))
	}
	for n, v := range map[string]int64{"default_time_to_live": 0, "gc_grace_seconds": 864000, "max_index_interval": 2048, "memtable_flush_period_in_ms": 0, "min_index_interval": 128} {
		if o, err := strconv.ParseInt(t.opts[n].text, 10, 32); err == nil {
			v = o
		}
		row[n] = encodeInt(v, 4)
	}
	for _, n := range []string{"caching", "compaction", "compression"} {
		if o, ok := t.opts[n]; ok {
			row[n] = texts(o.m)
		}
	}
	version := md5.Sum(fmt.Append(nil, t.ks, t.name, c.schemaVersion))
	sc, ext := map[string][]byte{"keyspace_name": ks, "table_name": name, "version": version[:]}, []byte{0, 0, 0, 0}
	if t.cdc != nil {
		ext = collect(1, []byte("cdc"), scyllaMap(t.cdc))
		sc["cdc"] = texts(t.cdc)
	}
	if t.base != nil {
		sc["partitioner"] = []byte("com.scylladb.dht.CDCPartitioner")
	}
	row["extensions"] = ext
	if t.view != nil {
		row["view_name"], row["base_table_name"], row["base_table_id"] = name, []byte(t.viewOf.name), t.viewOf.id
		var where []string
		for _, r := range t.view.sel.where {
			where = append(where, strings.Join(r.cols, ", ")+" "+strings.ToUpper(r.op))
		}
		row["where_clause"], row["include_all_columns"] = []byte(strings.Join(where, " AND ")), []byte{byte(b2i(t.view.sel.sel == nil))}
		c.sys("system_schema.views").put(row)
	} else {
		c.sys("system_schema.tables").put(row)
	}
	c.sys("system_schema.scylla_tables").put(sc)
	for _, col := range t.cols {
		order := "none"
		if col.kind == clustering {
			order = map[bool]string{true: "desc", false: "asc"}[col.desc]
		}
		c.sys("system_schema.columns").put(map[string][]byte{"keyspace_name": ks, "table_name": name, "column_name": []byte(col.name), "column_name_bytes": []byte(col.name),
			"kind": []byte(col.kind), "clustering_order": []byte(order), "type": []byte(col.typ.String()), "position": encodeInt(int64(col.pos), 4)})
	}
	for _, x := range t.indexes {
		target := ident(x.target)
		if x.kind != "" {
			target = x.kind + "(" + target + ")"
		}
		c.sys("system_schema.indexes").put(map[string][]byte{"keyspace_name": ks, "table_name": name, "index_name": []byte(x.name), "kind": []byte("COMPOSITES"),
			"options": texts(map[string]string{"target": target})})
	}
}

// scyllaMap is the form of the cdc extension of a schema: little-endian.
func scyllaMap(m map[string]string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(m)))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		for _, x := range []string{k, m[k]} {
			b = append(binary.LittleEndian.AppendUint32(b, uint32(len(x))), x...)
		}
	}
	return b
}

// describeNodes writes each node's own view of the cluster.
func (c *Cluster) describeNodes() {
	version := md5.Sum(fmt.Append(nil, c.schemaVersion))
	make1 := func(name string) *table {
		t := *c.sys(name)
		t.truncate()
		return &t
	}
	for _, n := range c.members() {
		n.local, n.peers = make1("system.local"), make1("system.peers")
		for _, m := range c.members() {
			ip := m.addr.Addr().AsSlice()
			row := map[string][]byte{"data_center": []byte(m.dc), "rack": []byte("rack1"), "host_id": m.hostID, "schema_version": version[:],
				"release_version": []byte("3.0.8"), "rpc_address": ip, "tokens": textSet(m.tokenTexts()...)}
			if m != n {
				row["peer"] = ip
				n.peers.put(row)
				continue
			}
			row["key"], row["broadcast_address"], row["listen_address"] = []byte("local"), ip, ip
			row["bootstrapped"], row["cluster_name"], row["cql_version"], row["native_protocol_version"] = []byte("COMPLETED"), []byte("double"), []byte("3.3.1"), []byte("4")
			row["partitioner"] = []byte("org.apache.cassandra.dht.Murmur3Partitioner")
			n.local.put(row)
		}
	}
}

// estimate fills system.size_estimates with the ranges that a node is the first to
// hold. Unlike a server's the figures are exact, and of this moment.
func (c *Cluster) estimate(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sizes := c.sys("system.size_estimates")
	sizes.truncate()
	var ring []int64
	for _, m := range c.members() {
		ring = append(ring, m.tokens...)
	}
	slices.Sort(ring)
	ranges := [][2]int64{}
	for i, end := range ring {
		switch {
		case !slices.Contains(n.tokens, end):
		case i > 0:
			ranges = append(ranges, [2]int64{ring[i-1], end})
		default: // around the end of the ring
			ranges = append(ranges, [2]int64{ring[len(ring)-1], math.MinInt64}, [2]int64{math.MinInt64, end})
		}
	}
	for _, k := range c.keyspaces {
		for _, t := range k.tables {
			if k.system {
				continue
			}
			for _, r := range ranges {
				parts, bytes := t.size(r[0], r[1])
				sizes.put(map[string][]byte{"keyspace_name": []byte(t.ks), "table_name": []byte(t.name), "range_start": fmt.Append(nil, r[0]), "range_end": fmt.Append(nil, r[1]),
					"partitions_count": encodeInt(parts, 8), "mean_partition_size": encodeInt(bytes/max(parts, 1), 8)})
			}
		}
	}
}

// size counts the partitions of a range of tokens and the bytes of their keys and
// values; a range that ends with the least token goes on to the greatest.
func (t *table) size(from, to int64) (parts, bytes int64) {
	add := func(vals ...[]byte) {
		for _, v := range vals {
			bytes += int64(len(v))
		}
	}
	for _, p := range t.parts {
		if p.token <= from || p.token > to && to != math.MinInt64 {
			continue
		}
		parts++
		add(p.key)
		for _, r := range append([]*row{p.static}, p.rows...) {
			add(r.ck...)
			for _, x := range r.cells {
				add(x.val)
			}
			for _, k := range r.colls {
				for _, e := range k.elems {
					add(e.key, e.val)
				}
			}
		}
	}
	return parts, bytes
}
