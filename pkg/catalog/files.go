package catalog

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// maxDefinitionFile bounds one file of definitions.
const maxDefinitionFile = 8 << 20

// LoadDir reads the definitions in the *.yaml, *.yml and *.json files of a
// directory, in the order of the files' names. A YAML file may hold several
// documents, one definition each. The error has the first mistake of every file,
// with its line. A client that is defined twice is a mistake.
func LoadDir(dir string) ([]*athena.Client, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	var list []*athena.Client
	var errs []error
	from := map[string]string{}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json":
		default:
			continue
		}
		path := filepath.Join(dir, e.Name())
		clients, err := LoadFile(path)
		if err != nil {
			errs = append(errs, err)
		}
		for _, c := range clients {
			if first, ok := from[c.Name]; ok {
				errs = append(errs, athena.Errorf(athena.CodeInvalidRequest, "%s: client %q is defined in %s already", path, c.Name, first))
				continue
			}
			from[c.Name] = path
			list = append(list, c)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return list, nil
}

// LoadFile reads the definitions in one file, as LoadDir does.
func LoadFile(path string) ([]*athena.Client, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDefinitionFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("catalog: %w", err)
	case len(text) > maxDefinitionFile:
		return nil, athena.Errorf(athena.CodeInvalidRequest, "%s is larger than %d MiB", path, maxDefinitionFile>>20)
	}
	return Load(path, text)
}

// Load reads the definitions in the text of a file; its name says whether it is
// JSON or YAML, and stands in errors.
func Load(name string, text []byte) ([]*athena.Client, error) {
	if filepath.Ext(name) == ".json" {
		return loadJSON(name, text)
	}
	return loadYAML(name, text)
}

func loadYAML(name string, text []byte) ([]*athena.Client, error) {
	var list []*athena.Client
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, yamlError(name, 1, err)
		}
		body := doc.Content[0]
		if body.Tag == "!!null" { // an empty document, such as after a last ---
			continue
		}
		if body.Kind != yaml.MappingNode {
			return nil, fileError(name, body.Line, athena.Errorf(athena.CodeInvalidRequest, "a client definition must be a mapping, with client_name, engine and so on"))
		}
		var value any
		if err := doc.Decode(&value); err != nil {
			return nil, yamlError(name, body.Line, err)
		}
		raw, err := json.Marshal(value)
		if err != nil { // a key that is no string, .inf
			return nil, fileError(name, body.Line, athena.Wrap(athena.CodeInvalidRequest, err, "the definition has something that JSON does not: %s", err))
		}
		client, err := athena.DecodeClient(raw)
		if err != nil {
			return nil, fileError(name, locate(body, err), err)
		}
		list = append(list, client)
	}
}

func loadJSON(name string, text []byte) ([]*athena.Client, error) {
	client, err := athena.DecodeClient(text)
	if err == nil {
		return []*athena.Client{client}, nil
	}
	var syntax *json.SyntaxError
	if e := json.Unmarshal(text, new(any)); errors.As(e, &syntax) {
		return nil, fileError(name, 1+bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n")), err)
	}
	// JSON is YAML but for its tabs, which it has between tokens alone.
	var doc yaml.Node
	if yaml.Unmarshal(bytes.ReplaceAll(text, []byte("\t"), []byte(" ")), &doc) != nil || len(doc.Content) == 0 {
		return nil, fileError(name, 1, err)
	}
	return nil, fileError(name, locate(doc.Content[0], err), err)
}

// locate finds the line that an error is about by the path of its field, or the
// nearest line above it.
func locate(n *yaml.Node, err error) int {
	line := n.Line
	path, _ := athena.AsError(err).Details["field"].(string)
	for path != "" && n.Kind == yaml.MappingNode {
		var next *yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if rest, ok := strings.CutPrefix(path, key.Value); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
				line, next, path = key.Line, n.Content[i+1], strings.TrimPrefix(rest, ".")
				break
			}
		}
		if next == nil {
			break
		}
		if n = next; n.Kind == yaml.AliasNode {
			n = n.Alias
		}
	}
	return line
}

var yamlLine = regexp.MustCompile(`(?s)^yaml: (?:unmarshal errors:\s*)?line (\d+): `)

// yamlError takes the line out of the library's own message.
func yamlError(name string, line int, err error) error {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		fmt.Sscan(m[1], &line)
		text = strings.TrimPrefix(text, m[0])
	}
	return fileError(name, line, athena.Wrap(athena.CodeInvalidRequest, err, "not valid YAML: %s", strings.TrimPrefix(text, "yaml: ")))
}

func fileError(name string, line int, err error) error {
	e := *athena.AsError(err)
	e.Message = fmt.Sprintf("%s:%d: %s", name, line, e.Message)
	return e.With("file", name).With("line", line)
}

// Verdict is what Apply did with one client.
type Verdict string

// The verdicts.
const (
	Created   Verdict = "created"
	Updated   Verdict = "updated"
	Unchanged Verdict = "unchanged"
)

// Applied reports on one client.
type Applied struct {
	Name    string  `json:"client_name"`
	Verdict Verdict `json:"verdict"`
	// Revision is the definition's, after Apply.
	Revision uint64 `json:"revision"`
	// LifecycleKept is set where the file changed, but not in its lifecycle,
	// and the lifecycle that the client has by another way was left to it.
	LifecycleKept bool `json:"lifecycle_kept,omitempty"`
}

// Apply makes the catalog hold what the definitions of files say. It never
// deletes a client.
//
// A definition is applied when it differs from the one that was last applied
// under that name, so that a start with unchanged files takes back nothing
// that was done through the API. Likewise a lifecycle: a client that was frozen
// by hand stays frozen until its file changes its word on the lifecycle.
//
// The reports are those of the definitions before the one that failed.
func (c *Catalog) Apply(ctx context.Context, defs []*athena.Client) ([]Applied, error) {
	reports := make([]Applied, 0, len(defs))
	for _, def := range defs {
		mark, err := c.mark(def)
		if err != nil {
			return reports, err
		}
		var report Applied
		stored, err := c.change(ctx, def.Name, Any, func(old record) (record, error) {
			report = Applied{Name: def.Name, Verdict: Updated, Revision: old.revision}
			next := record{client: def, applied: &applied{mark, def.Lifecycle}}
			switch {
			case old.revision == 0:
				report.Verdict = Created
			case old.applied == nil || old.err != nil:
			case old.applied.Mark == mark:
				report.Verdict = Unchanged
				return old, errUnchanged
			case old.applied.Lifecycle == def.Lifecycle && old.client.Lifecycle != def.Lifecycle:
				kept := *def
				kept.Lifecycle = old.client.Lifecycle
				next.client = &kept
				report.LifecycleKept = true
			}
			return next, nil
		})
		if err != nil {
			return reports, fmt.Errorf("catalog: apply client %q: %w", def.Name, err)
		}
		report.Revision = stored.Revision
		reports = append(reports, report)
	}
	return slices.Clip(reports), nil
}

// mark identifies what a file says. It covers the secrets, and is a MAC so that
// they cannot be guessed from it.
func (c *Catalog) mark(def *athena.Client) (string, error) {
	plain := *def
	plain.Revision = 0
	body, err := json.Marshal(&plain) // secrets redacted
	if err != nil {
		return "", fmt.Errorf("catalog: client %q: %w", def.Name, err)
	}
	_, err = def.Connection.MapSecrets(func(path string, s athena.Secret) (athena.Secret, error) {
		pair, err := json.Marshal([2]string{path, s.Reveal()})
		body = append(body, pair...)
		return s, err
	})
	return hex.EncodeToString(c.cfg.Keyring.Sign("catalog.applied", body)), err
}
