package scylla

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gocql/gocql"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

// A Go map has lost the order of its keys, and compareWire gives it back. Here a
// real Cassandra, whose order ScyllaDB has taken over, sorts keys of each type.
func TestKeysAreOrderedAsCassandraOrdersThem(t *testing.T) {
	t.Parallel()
	server := cassandratest.Start(t)
	keyspace := server.Keyspace(t)
	types := []string{"ascii", "bigint", "blob", "boolean", "date", "decimal", "double", "float", "inet", "int", "smallint", "text", "time", "timestamp",
		"timeuuid", "tinyint", "uuid", "varint", "frozen<list<int>>", "frozen<set<text>>", "frozen<map<int, text>>", "frozen<tuple<int, text>>", "vector<float, 3>"}
	session := server.Session(t)
	for _, text := range types {
		t.Run(text, func(t *testing.T) {
			info, err := typeParser{keyspace, nil}.parse("map<" + text + ", int>")
			if err != nil {
				t.Fatal(err)
			}
			key := info.(gocql.CollectionType).Key
			table := fmt.Sprintf("%s.m%d", keyspace, slices.Index(types, text))
			server.Exec(t, "CREATE TABLE "+table+" (pk int PRIMARY KEY, m map<"+text+", int>)")
			moved := false
			for n := range 20 {
				// Sent in the order of drawing; the server sorts them.
				var sent []byte
				count := 0
				seen := map[string]bool{}
				for i := range 12 {
					k := rapid.Custom(func(r *rapid.T) []byte { return drawValue(r, key) }).Example(n*100 + i)
					if form, err := appendValue(nil, key, k); err != nil || seen[string(form)] {
						continue
					} else {
						seen[string(form)] = true
					}
					sent = appendSized(appendSized(sent, k), []byte{0, 0, 0, byte(i)})
					count++
				}
				sent = append([]byte{0, 0, 0, byte(count)}, sent...)
				if err := session.Query("INSERT INTO "+table+" (pk, m) VALUES (?, ?)", n, asItIs(sent)).Exec(); err != nil {
					t.Fatal(err)
				}
				var stored wireCell
				if err := session.Query("SELECT m FROM "+table+" WHERE pk = ?", n).Scan(&stored); err != nil {
					t.Fatal(err)
				}
				both, err := readElements(stored.value)
				if err != nil {
					t.Fatal(err)
				}
				var keys [][]byte
				last := byte(0)
				for pair := range slices.Chunk(both, 2) {
					keys = append(keys, pair[0])
					moved = moved || pair[1][3] < last
					last = pair[1][3]
				}
				if !slices.IsSortedFunc(keys, func(a, b []byte) int { return compareWire(key, a, b) }) {
					t.Fatalf("the server has %x in this order", keys)
				}
			}
			if !moved {
				t.Error("the server never had an order of its own")
			}
		})
	}
}

// asItIs binds bytes as they are.
type asItIs []byte

func (b asItIs) MarshalCQL(gocql.TypeInfo) ([]byte, error) { return b, nil }
