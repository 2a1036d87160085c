package scyllatest

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/datastax/go-cassandra-native-protocol/datatype"
	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

// The system tables a ScyllaDB node answers from, as far as gocql and
// scylla-cdc-go look at them (a real node has more tables and more columns).
var systemTables = []string{
	`system.local (key text PRIMARY KEY, broadcast_address inet, cluster_name text, data_center text, host_id uuid, listen_address inet, partitioner text, rack text, release_version text, rpc_address inet, schema_version uuid, tokens set<text>)`,
	`system.peers (peer inet PRIMARY KEY, data_center text, host_id uuid, rack text, release_version text, rpc_address inet, schema_version uuid, tokens set<text>)`,
	`system_schema.keyspaces (keyspace_name text PRIMARY KEY, durable_writes boolean, replication frozen<map<text, text>>)`,
	`system_schema.tables (keyspace_name text, table_name text, bloom_filter_fp_chance double, comment text, default_time_to_live int, extensions frozen<map<text, blob>>, flags frozen<set<text>>, gc_grace_seconds int, id uuid, PRIMARY KEY (keyspace_name, table_name))`,
	`system_schema.columns (keyspace_name text, table_name text, column_name text, clustering_order text, kind text, position int, type text, PRIMARY KEY (keyspace_name, table_name, column_name))`,
	`system_schema.types (keyspace_name text, type_name text, field_names frozen<list<text>>, field_types frozen<list<text>>, PRIMARY KEY (keyspace_name, type_name))`,
	`system_schema.indexes (keyspace_name text, table_name text, index_name text, kind text, options frozen<map<text, text>>, PRIMARY KEY (keyspace_name, table_name, index_name))`,
	`system_schema.views (keyspace_name text, view_name text, base_table_name text, PRIMARY KEY (keyspace_name, view_name))`,
	`system_schema.functions (keyspace_name text, function_name text, PRIMARY KEY (keyspace_name, function_name))`,
	`system_schema.aggregates (keyspace_name text, aggregate_name text, PRIMARY KEY (keyspace_name, aggregate_name))`,
	`system_schema.scylla_tables (keyspace_name text, table_name text, cdc map<text, text>, in_memory boolean, partitioner text, tablets map<text, text>, version uuid, PRIMARY KEY (keyspace_name, table_name))`,
	`system_schema.scylla_keyspaces (keyspace_name text PRIMARY KEY, consistency text, initial_tablets int, storage_options map<text, text>, storage_type text)`,
	`system_distributed.cdc_generation_timestamps (key text, time timestamp, expired timestamp, PRIMARY KEY (key, time)) WITH CLUSTERING ORDER BY (time DESC)`,
	`system_distributed.cdc_streams_descriptions_v2 (time timestamp, range_end bigint, streams frozen<set<blob>>, PRIMARY KEY (time, range_end))`,
	`system.cdc_timestamps (keyspace_name text, table_name text, timestamp timestamp, PRIMARY KEY ((keyspace_name, table_name), timestamp)) WITH CLUSTERING ORDER BY (timestamp DESC)`,
	`system.cdc_streams (keyspace_name text, table_name text, timestamp timestamp, stream_state tinyint, stream_id blob, PRIMARY KEY ((keyspace_name, table_name), timestamp, stream_state, stream_id))`,
}

var textMap = datatype.NewMap(datatype.Varchar, datatype.Varchar)

func (s *Cluster) bootstrap() {
	var all []*table
	for _, def := range systemTables {
		t := s.parse("CREATE TABLE " + def).t
		s.tabs[t.ks+"."+t.name], all = t, append(all, t)
	}
	for _, ks := range []string{"system", "system_schema", "system_distributed"} {
		s.addKeyspace(ks)
	}
	for _, t := range all {
		s.describe(t)
	}
	id, ip := []byte("\xc0\xd1\xd2\x1e\xbb\x01\x41\x96\x86\xdb\xbc\x31\x7b\xc1\x79\x6a"), []byte{127, 0, 0, 1}
	s.sys("system.local", map[string][]byte{
		"key": []byte("local"), "broadcast_address": ip, "listen_address": ip, "rpc_address": ip,
		"cluster_name": []byte("double"), "data_center": []byte("datacenter1"), "rack": []byte("rack1"),
		"host_id": id, "schema_version": id, "release_version": []byte("3.0.8"),
		"partitioner": []byte("org.apache.cassandra.dht.Murmur3Partitioner"),
		"tokens":      enc(datatype.NewSet(datatype.Varchar), []string{"0"}),
	})
}

func (s *Cluster) sys(name string, v map[string][]byte) {
	s.clock++
	s.tabs[name].put(v, s.clock)
}

func (s *Cluster) addKeyspace(ks string) {
	s.sys("system_schema.keyspaces", map[string][]byte{
		"keyspace_name": []byte(ks), "durable_writes": {1},
		"replication": enc(textMap, map[string]string{"class": "org.apache.cassandra.locator.NetworkTopologyStrategy", "datacenter1": "1"}),
	})
}

// describe fills system_schema from a table's definition.
func (s *Cluster) describe(t *table) {
	ks, name, ext := []byte(t.ks), []byte(t.name), map[string][]byte{}
	sc := map[string][]byte{"keyspace_name": ks, "table_name": name}
	if t.cdc["enabled"] == "true" {
		m := map[string]string{"enabled": "true", "ttl": "86400", "preimage": "false", "postimage": "false", "delta": "full"}
		for k, v := range t.cdc {
			m[k] = v
		}
		ext["cdc"], sc["cdc"] = scyllaMap(m), enc(textMap, m)
	}
	if t.isLog {
		sc["partitioner"] = []byte("com.scylladb.dht.CDCPartitioner")
	}
	s.sys("system_schema.scylla_tables", sc)
	s.sys("system_schema.tables", map[string][]byte{
		"keyspace_name": ks, "table_name": name, "comment": {}, "default_time_to_live": {0, 0, 0, 0},
		"extensions": enc(datatype.NewMap(datatype.Varchar, datatype.Blob), ext), "flags": enc(datatype.NewSet(datatype.Varchar), []string{"compound"}),
	})
	for _, c := range t.cols {
		order := "none"
		if c.kind == "clustering" {
			order = map[bool]string{true: "desc", false: "asc"}[c.desc]
		}
		s.sys("system_schema.columns", map[string][]byte{
			"keyspace_name": ks, "table_name": name, "column_name": []byte(c.name), "kind": []byte(c.kind),
			"clustering_order": []byte(order), "type": []byte(c.typ.text), "position": binary.BigEndian.AppendUint32(nil, uint32(c.pos)),
		})
	}
}

// scyllaMap is ScyllaDB's little-endian form of the cdc schema extension.
func scyllaMap(m map[string]string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(m)))
	for k, v := range m {
		for _, x := range []string{k, v} {
			b = append(binary.LittleEndian.AppendUint32(b, uint32(len(x))), x...)
		}
	}
	return b
}

func (s *Cluster) create(st *stmt) message.Message {
	switch full := st.ks + "." + st.name; {
	case st.kind == "KEYSPACE":
		s.addKeyspace(st.ks)
	case st.kind == "TYPE":
		u, l := &datatype.UserDefined{Keyspace: st.ks, Name: st.name, FieldNames: st.fieldNames}, datatype.NewList(datatype.Varchar)
		var texts []string
		for _, t := range st.fieldTypes {
			texts, u.FieldTypes = append(texts, t.text), append(u.FieldTypes, t.dt)
		}
		s.udts[full] = u
		s.sys("system_schema.types", map[string][]byte{"keyspace_name": []byte(st.ks), "type_name": []byte(st.name), "field_names": enc(l, st.fieldNames), "field_types": enc(l, texts)})
	case s.tabs[full] != nil && st.ifNotExists:
		return &message.VoidResult{}
	case s.tabs[full] != nil:
		return &message.AlreadyExists{ErrorMessage: "Cannot add already existing table", Keyspace: st.ks, Table: st.name}
	default:
		s.tabs[full] = st.t
		if s.describe(st.t); st.t.cdc["enabled"] == "true" {
			l := s.parse(logTable(st.t)).t
			l.isLog, s.tabs[l.ks+"."+l.name] = true, l
			s.describe(l)
		}
	}
	return &message.SchemaChangeResult{ChangeType: primitive.SchemaChangeTypeCreated, Target: primitive.SchemaChangeTarget(st.kind), Keyspace: st.ks, Object: st.name}
}

// logTable derives the CDC log's definition from its base table, by the rules
// in ScyllaDB's docs/features/cdc/cdc-log-table and cdc-advanced-types.
func logTable(t *table) string {
	cols := []string{`"cdc$stream_id" blob, "cdc$time" timeuuid, "cdc$batch_seq_no" int, "cdc$operation" tinyint, "cdc$ttl" bigint, "cdc$end_of_batch" boolean`}
	for _, c := range t.cols {
		typ, elems := c.typ.text, ""
		switch {
		case c.typ.frozen || c.typ.coll == "" || c.typ.coll == "tuple":
		case c.typ.coll == "list":
			typ, elems = "frozen<map<timeuuid, "+c.typ.args[0].text+">>", "timeuuid"
		case c.typ.coll == "udt":
			typ, elems = "frozen<"+typ+">", "smallint"
		default:
			typ, elems = "frozen<"+typ+">", c.typ.args[0].text
		}
		cols = append(cols, fmt.Sprintf("%q %s", c.name, typ))
		if c.kind == "regular" || c.kind == "static" {
			cols = append(cols, fmt.Sprintf("%q boolean", "cdc$deleted_"+c.name))
		}
		if elems != "" {
			cols = append(cols, fmt.Sprintf("%q frozen<set<%s>>", "cdc$deleted_elements_"+c.name, elems))
		}
	}
	return fmt.Sprintf(`CREATE TABLE %s.%s_scylla_cdc_log (%s, PRIMARY KEY ("cdc$stream_id", "cdc$time", "cdc$batch_seq_no"))`, t.ks, t.name, strings.Join(cols, ", "))
}
