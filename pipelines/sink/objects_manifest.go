package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// ManifestFolder is where manifests are, below what the sink's keys have in common.
const ManifestFolder = "_manifest/"

// A Manifest says which objects a commit has published. It is written behind all
// of them: what it names is there, whole.
type Manifest struct {
	Pipeline string           `json:"pipeline"`
	Run      string           `json:"run"`
	Commit   string           `json:"commit"` // the run's own, or a position of its stream
	Format   string           `json:"format"`
	Objects  []ManifestObject `json:"objects"`
	Schema   *record.Schema   `json:"schema,omitempty"` // of their rows
	Rows     int64            `json:"rows"`
	Bytes    int64            `json:"bytes"`
}

// A ManifestObject is one of its objects.
type ManifestObject struct {
	Key   string `json:"key"`
	Rows  int64  `json:"rows"`
	Bytes int64  `json:"bytes"`
	First string `json:"first,omitempty"` // positions of its changes
	Last  string `json:"last,omitempty"`
}

// ManifestKey is the key of a commit's manifest.
func (o *Objects) ManifestKey(commit string) string {
	return ManifestPrefix(o.What.Prefix) + string(appendSegment(nil, []byte(o.Run+"-"+commit))) + ".json"
}

// ManifestPrefix is what the keys of a sink's manifests begin with: the folders of
// its prefix that no column names, and ManifestFolder.
func ManifestPrefix(prefix string) string {
	static := spec.StaticPrefix(prefix)
	return static[:strings.LastIndexByte(static, '/')+1] + ManifestFolder
}

// Manifest writes the manifest of a commit, whose objects are published. Written
// again it replaces itself. The schema is that of the rows that came, without the
// columns of a log.
func (o *Objects) Manifest(ctx context.Context, commit string, objects []stage.Object, s *record.Schema) (Manifest, error) {
	m := Manifest{Pipeline: o.Pipeline, Run: o.Run, Commit: commit, Format: o.What.Format, Objects: []ManifestObject{}}
	if s != nil {
		var err error
		if m.Schema, err = o.schema(s); err != nil {
			return m, err
		}
	}
	for _, obj := range objects {
		m.Objects = append(m.Objects, ManifestObject{Key: obj.Key, Rows: obj.Rows, Bytes: obj.Bytes, First: obj.First, Last: obj.Last})
		m.Rows += obj.Rows
		m.Bytes += obj.Bytes
	}
	body, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return m, err
	}
	_, err = o.Store.WriteObject(ctx, o.ManifestKey(commit), bytes.NewReader(body), driver.ObjectWrite{
		ContentType: "application/json", Bytes: int64(len(body)),
	})
	return m, o.fault(err)
}
