// Package cdcfixture is the form of the files that hold a log of changes together
// with what was done to its table, and with the changes that it must be read as.
//
// Tests of the driver read them; bench/scyllarecord writes those that come from a
// real cluster. Where a log comes from is part of it, and is told wherever its
// tests are counted: what a document shows and what we made up proves less than
// what a cluster wrote.
package cdcfixture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Origin says where a log comes from.
type Origin string

// The origins.
const (
	Documented Origin = "documented" // shown in ScyllaDB's documentation
	Synthetic  Origin = "synthetic"  // written by us, by what the documentation says
	Recorded   Origin = "recorded"   // written by a real cluster
)

// A Fixture is one file.
type Fixture struct {
	Origin Origin `json:"origin"`
	// Source is the page and section of what is documented, and why a synthetic log
	// is as it is.
	Source string `json:"source,omitempty"`
	// Cluster is what wrote a recorded log.
	Cluster *Cluster `json:"cluster,omitempty"`

	Keyspace string `json:"keyspace"`
	Table    string `json:"table"`
	// Create makes the types and the table, and Statements are what was done to it,
	// in this order. Both name the table by {table}, and types by {keyspace}.
	// Statements may be missing of a log that was recorded of a table in use.
	Create     []string `json:"create"`
	Statements []string `json:"statements,omitempty"`

	// Log holds the log's rows in its order within each stream: columns by name, in
	// the forms of docs/types.md, without those that are null.
	Log []Row `json:"log"`
	// Changes are the envelopes, without pos, that the log must be read as. A log
	// that was just recorded has none: a person must say what is right.
	Changes []json.RawMessage `json:"changes,omitempty"`

	// File is the name of the file that it was read from.
	File string `json:"-"`
}

// A Row is one row of the log.
type Row map[string]json.RawMessage

// Cluster says what wrote a recorded log.
type Cluster struct {
	Product string `json:"product"`
	Version string `json:"version"`
	Layout  string `json:"layout"` // vnodes or tablets
	Date    string `json:"date"`   // of the recording, 2006-01-02
}

// Load reads all fixtures of a directory, in the order of their names, and fails
// at a member that it does not know and at an origin without its proof.
func Load(dir string) ([]*Fixture, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []*Fixture
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		f, err := Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		f.File = filepath.Base(file)
		all = append(all, f)
	}
	return all, nil
}

// Parse reads one fixture.
func Parse(raw []byte) (*Fixture, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var f Fixture
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	switch {
	case f.Origin == Documented && f.Source == "", f.Origin == Synthetic && f.Source == "":
		return nil, fmt.Errorf("origin %s needs a source", f.Origin)
	case f.Origin == Recorded && (f.Cluster == nil || f.Cluster.Version == "" || f.Cluster.Date == ""):
		return nil, fmt.Errorf("origin %s needs a cluster with version and date", f.Origin)
	case f.Origin != Documented && f.Origin != Synthetic && f.Origin != Recorded:
		return nil, fmt.Errorf("origin %q is none", f.Origin)
	case f.Keyspace == "" || f.Table == "" || len(f.Create) == 0:
		return nil, fmt.Errorf("keyspace, table and create are needed")
	}
	return &f, nil
}

// In puts the table's name, and the keyspace's, into one of Create or Statements.
func In(statement, keyspace, table string) string {
	return strings.NewReplacer("{table}", keyspace+"."+table, "{keyspace}", keyspace).Replace(statement)
}

var writeTime = regexp.MustCompile(`TIMESTAMP (\d{12,18})\b`)

// AtPresent moves the write times that statements name to now, the earliest of them,
// and leaves their distances: a cluster refuses to log what was written long ago.
func AtPresent(statements []string, now time.Time) []string {
	micros := func(match string) int64 {
		n, _ := strconv.ParseInt(strings.Fields(match)[1], 10, 64) // digits, and few enough
		return n
	}
	first := int64(math.MaxInt64)
	for _, s := range statements {
		for _, m := range writeTime.FindAllString(s, -1) {
			first = min(first, micros(m))
		}
	}
	moved := make([]string, len(statements))
	for i, s := range statements {
		moved[i] = writeTime.ReplaceAllStringFunc(s, func(m string) string {
			return fmt.Sprintf("TIMESTAMP %d", micros(m)-first+now.UnixMicro())
		})
	}
	return moved
}

// Write writes the fixture to a file.
func (f *Fixture) Write(file string) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(f); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}

// Tally counts fixtures by origin, as in "documented 12, recorded 0, synthetic 7".
// Recorded is always named: that there are none is what must be known.
func Tally(all []*Fixture) string {
	n := map[Origin]int{}
	for _, f := range all {
		n[f.Origin]++
	}
	var parts []string
	for _, o := range []Origin{Documented, Recorded, Synthetic} {
		if n[o] > 0 || o == Recorded {
			parts = append(parts, fmt.Sprintf("%s %d", o, n[o]))
		}
	}
	return strings.Join(parts, ", ")
}
