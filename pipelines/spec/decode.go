package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Bounds of a document.
const (
	mostBytes = 1 << 20
	mostDepth = 64
)

// A Problem is one thing that is wrong with a definition.
type Problem struct {
	Field string `json:"field"` // its path; empty for the whole
	// Line is where it stands in the document, from 1; 0 where there is none.
	Line    int    `json:"line,omitempty"`
	Message string `json:"message"`
}

// String is the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d", p.Line)
		b.WriteString(map[bool]string{true: ": ", false: ", "}[p.Field == ""])
	}
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	return b.String() + p.Message
}

// Decode reads a definition in YAML or JSON and checks all of it that can be
// checked without knowing clients and schemas. Defaults are not filled in: see
// Normalize.
//
// The error is invalid_request and has all problems in its detail "problems", a
// []Problem, in the order of the document; its field is the first one's.
func Decode(data []byte) (*Pipeline, error) {
	d := &decoder{lines: map[string]int{}}
	root := d.parse(data)
	if d.failed() {
		return nil, d.err()
	}
	d.plain(root, "", 0)
	if d.failed() {
		return nil, d.err()
	}
	d.translate(root)
	p := new(Pipeline)
	d.decode(root, "", p)
	d.validate(p)
	if d.failed() {
		return nil, d.err()
	}
	return p, nil
}

// Encode writes a definition in its canonical form: JSON in one line, of which
// Decode makes an equal one.
func Encode(p *Pipeline) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		panic(fmt.Sprintf("spec: a definition cannot be encoded: %v", err)) // only raw values that are no JSON
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// A decoder collects what is wrong with one document, and where things stand.
type decoder struct {
	problems []Problem
	lines    map[string]int // by path
}

func (d *decoder) failed() bool { return len(d.problems) > 0 }

// at reports a problem on a line.
func (d *decoder) at(line int, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{path, line, fmt.Sprintf(format, args...)})
}

// refuse reports a problem of a field, on its line or on that of what it should
// be in. What was refused already is not refused again.
func (d *decoder) refuse(path, format string, args ...any) {
	if slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Field == path }) {
		return
	}
	d.at(d.line(path), path, format, args...)
}

func (d *decoder) line(path string) int {
	for {
		if n, ok := d.lines[path]; ok {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return d.lines[""]
		}
		path = path[:i]
	}
}

// mostListed bounds the problems that an error has.
const mostListed = 50

func (d *decoder) err() error {
	list := slices.Clone(d.problems)
	slices.SortStableFunc(list, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	list = list[:min(len(list), mostListed)]
	text := list[0].String()
	if len(list) > 1 {
		lines := make([]string, len(list))
		for i, p := range list {
			lines[i] = p.String()
		}
		text = fmt.Sprintf("the definition has %d problems: %s", len(d.problems), strings.Join(lines, "; "))
	}
	return athena.Errorf(athena.CodeInvalidRequest, "%s", text).At(list[0].Field).With("problems", list)
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+)(?:, column \d+)?: )?(.*)`)

// parse makes one tree of a document, in whichever of the two forms.
func (d *decoder) parse(data []byte) *yaml.Node {
	switch {
	case len(data) > mostBytes:
		d.at(0, "", "the definition has %d bytes; the most is %d", len(data), mostBytes)
		return nil
	case !utf8.Valid(data):
		d.at(0, "", "the definition is not UTF-8")
		return nil
	case len(bytes.TrimSpace(data)) == 0:
		d.at(0, "", "the definition is empty; it needs at least a source and a sink")
		return nil
	}
	if json.Valid(data) {
		return (&jsonTree{data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}).value(d, 0)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) != 1 {
		d.at(1, "", "the definition is empty; it needs at least a source and a sink")
		return nil
	}
	if err != nil {
		m := yamlError.FindStringSubmatch(err.Error())
		line, text := 0, err.Error()
		if m != nil {
			line, _ = strconv.Atoi(m[1])
			text = m[2]
		}
		d.at(line, "", "this is neither YAML nor JSON: %.200s", text)
		return nil
	}
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		d.at(next.Line, "", "a second document begins here; a definition is one document")
		return nil
	}
	return doc.Content[0]
}

// plain refuses what YAML has and JSON has not, and what is nested too deeply.
func (d *decoder) plain(n *yaml.Node, path string, depth int) {
	switch {
	case depth > mostDepth:
		d.at(n.Line, path, "this is nested more than %d deep", mostDepth)
		return
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.at(n.Line, path, "anchors and aliases are not understood here; write the value out")
		return
	case n.Kind == yaml.ScalarNode && !slices.Contains(scalarTags, n.ShortTag()):
		d.at(n.Line, path, "the tag %.40s is not understood here", n.ShortTag())
		return
	}
	switch n.Kind {
	case yaml.MappingNode:
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			at := join(path, k.Value)
			switch {
			case k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge":
				d.at(k.Line, path, "the name of a field must be a text")
				continue
			case seen[k.Value] > 0:
				d.at(k.Line, at, "it is given twice; the first stands on line %d", seen[k.Value])
				continue
			}
			seen[k.Value] = k.Line
			d.plain(v, at, depth+1)
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			d.plain(v, index(path, i), depth+1)
		}
	}
}

var scalarTags = []string{"!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp"}

// A jsonTree reads a JSON text, which is valid, as the tree that YAML would be.
// YAML's own reader stumbles over tabs and some escapes.
type jsonTree struct {
	data []byte
	dec  *json.Decoder
	line int
	done int // bytes whose lines are counted
}

func (t *jsonTree) token(d *decoder) (json.Token, bool) {
	t.dec.UseNumber()
	tok, err := t.dec.Token()
	if err != nil {
		d.at(t.line, "", "this is not JSON: %v", err)
		return nil, false
	}
	end := int(t.dec.InputOffset())
	t.line += bytes.Count(t.data[t.done:end], []byte("\n"))
	t.done = end
	return tok, true
}

func (t *jsonTree) value(d *decoder, depth int) *yaml.Node {
	tok, ok := t.token(d)
	if !ok || depth > mostDepth+1 {
		if ok {
			d.at(t.line, "", "this is nested more than %d deep", mostDepth)
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: t.line}
	switch v := tok.(type) {
	case json.Delim:
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		if v == '[' {
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		}
		for t.dec.More() && !d.failed() {
			n.Content = append(n.Content, t.value(d, depth+1))
		}
		if !d.failed() {
			t.token(d)
		}
	case string:
		n.Tag, n.Value = "!!str", v
	case json.Number:
		n.Tag, n.Value = "!!int", v.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(v)
	default:
		n.Tag, n.Value = "!!null", "null"
	}
	return n
}

// join names a field below a path.
func join(path, name string) string {
	for i, r := range name {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return fmt.Sprintf("%s[%.80q]", path, name)
		}
	}
	switch {
	case path == "":
		return name
	case name == "":
		return path + `[""]`
	}
	return path + "." + name
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
