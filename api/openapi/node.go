package openapi

import (
	"bytes"
	"encoding/json"
	"iter"
	"strings"

	"go.yaml.in/yaml/v3"
)

// value is a part of the document, in the order in which it is written. The zero
// value is a part that is not there.
type value struct{ node *yaml.Node }

// doc is the whole document.
type doc struct{ root *yaml.Node }

func (d doc) at(path ...string) value { return value{d.root}.at(path...) }

// resolve follows a $ref within the document.
func (d doc) resolve(v value) value {
	ref := v.text("$ref")
	if ref == "" {
		return v
	}
	return d.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
}

// members yields a mapping's keys and values, with those that are merged into
// it.
func (v value) members() iter.Seq2[string, value] {
	return func(yield func(string, value) bool) {
		if v.node == nil || v.node.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(v.node.Content); i += 2 {
			key, val := v.node.Content[i].Value, value{follow(v.node.Content[i+1])}
			if key == "<<" {
				for k, m := range val.members() {
					if !yield(k, m) {
						return
					}
				}
				continue
			}
			if !yield(key, val) {
				return
			}
		}
	}
}

func (v value) items() []value {
	if v.node == nil || v.node.Kind != yaml.SequenceNode {
		return nil
	}
	list := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		list[i] = value{follow(n)}
	}
	return list
}

func (v value) find(key string) (value, bool) {
	for k, m := range v.members() {
		if k == key {
			return m, true
		}
	}
	return value{}, false
}

func (v value) at(path ...string) value {
	for _, key := range path {
		v, _ = v.find(key)
	}
	return v
}

// text is the scalar under key; empty if there is none.
func (v value) text(key string) string {
	m, _ := v.find(key)
	if m.node == nil || m.node.Kind != yaml.ScalarNode {
		return ""
	}
	return m.node.Value
}

func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// examples of a media type, as text: JSON where they are not text already.
func examples(media value) (list []example) {
	if e, ok := media.find("example"); ok {
		list = append(list, example{"", sample(e)})
	}
	for _, e := range media.at("examples").members() {
		list = append(list, example{e.text("summary"), sample(e.at("value"))})
	}
	return list
}

func sample(v value) string {
	if v.node.Kind == yaml.ScalarNode {
		return v.node.Value
	}
	return string(indent(v.json(), ""))
}

// json writes the part as JSON in the document's own order.
func (v value) json() []byte {
	var b bytes.Buffer
	switch v.node.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		first := true
		for k, m := range v.members() {
			if !first {
				b.WriteByte(',')
			}
			first = false
			key, _ := json.Marshal(k)
			b.Write(key)
			b.WriteByte(':')
			b.Write(m.json())
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, m := range v.items() {
			if i > 0 {
				b.WriteByte(',')
			}
			b.Write(m.json())
		}
		b.WriteByte(']')
	default:
		var scalar any
		if err := v.node.Decode(&scalar); err != nil {
			scalar = v.node.Value
		}
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if enc.Encode(scalar) != nil {
			return []byte("null")
		}
		return bytes.TrimSpace(b.Bytes())
	}
	return b.Bytes()
}

// indent breaks JSON into lines where one line would be long.
func indent(raw []byte, prefix string) []byte {
	if len(raw) < 80 {
		return raw
	}
	var b bytes.Buffer
	if json.Indent(&b, raw, prefix, "  ") != nil {
		return raw
	}
	return b.Bytes()
}
