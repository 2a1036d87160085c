package pipecrash

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/bench/judge"
	"github.com/athena-pipelines/athena/pipelines/format"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// equal compares what the view seen shows in the source and in the target, row by
// row; it has no key, so that a row that is there twice is seen.
func (s *stage) equal() {
	s.Helper()
	differences, err := judge.Compare(s.ctx, s.rig.DSN(), s.rig.Database.DSN("copy"), []judge.Table{{Schema: "public", Name: "seen"}})
	s.check(err)
	for _, d := range differences {
		s.Error(d)
	}
}

// show makes the view seen in both databases.
func (s *stage) show(source, target string) {
	s.Helper()
	s.exec(s.shop, "DROP VIEW IF EXISTS seen; CREATE VIEW seen AS "+source)
	s.exec(s.copy, "DROP VIEW IF EXISTS seen; CREATE VIEW seen AS "+target)
}

// swept holds that a run has left nothing in the target's database but its
// checkpoints: of each task one, and one of the whole if that takes effect at once.
func (s *stage) swept(info *sdk.RunInfo, staged bool) {
	s.Helper()
	if n := one[int](s, s.copy, "SELECT count(*) FROM pg_tables WHERE schemaname = 'athena' AND tablename <> 'checkpoints'"); n != 0 {
		s.Errorf("%d staging tables are left", n)
	}
	want := info.Tasks
	if staged {
		want++
	}
	if n := one[int](s, s.copy, "SELECT count(*) FROM athena.checkpoints WHERE run = $1", info.ID); n != want {
		s.Errorf("%d checkpoints are kept of a run of %d tasks", n, info.Tasks)
	}
}

// objects lists those below a prefix.
func (s *stage) objects(prefix string) (all []driver.Object, err error) {
	for after := ""; ; {
		page, err := s.lake.Objects(s.ctx, driver.ObjectList{Prefix: prefix, After: after})
		if err != nil {
			return all, err
		}
		all = append(all, page.Objects...)
		if after = page.Next; after == "" {
			return all, nil
		}
	}
}

// keys lists the objects below a prefix.
func (s *stage) keys(prefix string) (keys []string) {
	s.Helper()
	all, err := s.objects(prefix)
	s.check(err)
	for _, o := range all {
		keys = append(keys, o.Key)
	}
	return keys
}

// unchanged holds that objects, once they can be seen, stay as they are: nothing is
// published that is not decided, and would be written again. Manifests of batches
// may be.
func (s *stage) unchanged() {
	all, err := s.objects("")
	if err != nil {
		s.Error(err)
	}
	there := map[string]bool{}
	for _, o := range all {
		there[o.Key] = true
		was, known := s.shown[o.Key]
		switch {
		case strings.Contains(o.Key, sink.ManifestFolder):
		case known && (was.ETag != o.ETag || !was.Modified.Equal(o.Modified)):
			s.Errorf("object %s was seen as it was written at %s, and was written again at %s", o.Key, was.Modified, o.Modified)
		}
		s.shown[o.Key] = o
	}
	for key := range s.shown {
		if !there[key] {
			s.Errorf("object %s was seen, and is gone", key)
			delete(s.shown, key)
		}
	}
}

func (s *stage) object(key string) []byte {
	s.Helper()
	o, err := s.lake.ReadObject(s.ctx, key, driver.ObjectRead{})
	s.check(err)
	defer o.Close()
	raw, err := io.ReadAll(o)
	s.check(err)
	return raw
}

// manifests are those below a prefix, in the order of their keys. Those in read are
// not read again.
func (s *stage) manifests(prefix string, read map[string]sink.Manifest) (all []sink.Manifest) {
	s.Helper()
	for _, key := range s.keys(prefix + sink.ManifestFolder) {
		m, ok := read[key]
		if !ok {
			s.check(json.Unmarshal(s.object(key), &m))
			if read != nil {
				read[key] = m
			}
		}
		all = append(all, m)
	}
	return all
}

// listed holds what is below a prefix against the manifests: each object is in one
// of them, with the rows and bytes that it has, none is missing, and nothing that
// was staged is left. It calls fn with the rows of each object, as JSON.
func (s *stage) listed(prefix string, fn func(key string, rows []json.RawMessage)) (objects int64) {
	s.Helper()
	there := map[string]bool{}
	for _, key := range s.keys(prefix) {
		if !strings.HasPrefix(key, prefix+sink.ManifestFolder) {
			there[key] = true
		}
	}
	listed := map[string]bool{}
	for _, m := range s.manifests(prefix, nil) {
		var total int64
		for _, o := range m.Objects {
			objects++
			switch {
			case listed[o.Key]:
				s.Errorf("object %s is listed twice", o.Key)
				continue
			case !there[o.Key]:
				s.Errorf("object %s is listed and not there", o.Key)
				continue
			}
			listed[o.Key] = true
			raw := s.object(o.Key)
			rows := s.rows(o.Key, raw)
			if int64(len(rows)) != o.Rows || int64(len(raw)) != o.Bytes {
				s.Errorf("object %s has %d rows in %d bytes, and is listed with %d in %d", o.Key, len(rows), len(raw), o.Rows, o.Bytes)
			}
			total += o.Rows
			fn(o.Key, rows)
		}
		if total != m.Rows {
			s.Errorf("the manifest of %s counts %d rows, and its objects have %d", m.Commit, m.Rows, total)
		}
	}
	for key := range there {
		if !listed[key] {
			s.Errorf("object %s is there and not listed", key)
		}
	}
	s.unchanged()
	left, err := s.lake.StagedObjects(s.ctx, prefix, time.Now().Add(time.Hour))
	s.check(err)
	for _, o := range left {
		if s.haunted {
			s.Logf("an upload of %s was begun too late, and is left to upkeep", o.Key)
			continue
		}
		s.Errorf("an upload of %s is left", o.Key)
	}
	return objects
}

// rows reads an object.
func (s *stage) rows(key string, raw []byte) (rows []json.RawMessage) {
	s.Helper()
	if strings.HasSuffix(key, ".ndjson") {
		for line := range bytes.Lines(raw) {
			rows = append(rows, bytes.TrimSpace(line))
		}
		return rows
	}
	r, err := format.OpenParquet(bytes.NewReader(raw), int64(len(raw)), format.ReadOptions{})
	s.check(err)
	for {
		b, err := r.Next(driver.BatchSize{})
		if err == io.EOF {
			return rows
		}
		s.check(err)
		for i := range b.Rows() {
			rows = append(rows, b.AppendJSON(nil, i))
		}
	}
}

// take puts rows of objects into a table of the target's database, which has their
// columns and no key.
func (s *stage) take(table string, rows []json.RawMessage) {
	s.Helper()
	raw, err := json.Marshal(rows)
	s.check(err)
	s.exec(s.copy, fmt.Sprintf("INSERT INTO %s SELECT * FROM jsonb_populate_recordset(NULL::%s, $1::text::jsonb)", table, table), string(raw))
}
