package spec

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/pkg/athena"
)

var (
	placeholder  = regexp.MustCompile(`\$\$\{|\$\{([^{}]*)\}?`)
	paramName    = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	defaultValue = regexp.MustCompile(`^[\p{L}\p{N}_.:/@+-]*$`)
)

// mostValue bounds the bytes of one value of a parameter.
const mostValue = 4096

// placeholders checks the parameters, and that texts name only those.
func (d *decoder) placeholders(p *Pipeline) {
	for _, name := range slices.Sorted(maps.Keys(p.Params)) {
		at, param := join("params", name), p.Params[name]
		if !paramName.MatchString(name) {
			d.refuse(at, "the name of a parameter starts with a letter and holds at most 63 of a-z, 0-9 and _")
		}
		if _, err := regexp.Compile(param.Pattern); err != nil {
			d.refuse(at+".pattern", "%q is not a regular expression", clip(param.Pattern))
		} else if param.Default != nil {
			if err := param.check(name, *param.Default); err != nil {
				d.refuse(at+".default", "%s", athena.AsError(err).Message)
			}
		}
	}
	texts(tree(p), "", func(path string, n *yaml.Node) {
		for _, m := range placeholder.FindAllStringSubmatch(n.Value, -1) {
			switch _, known := p.Params[m[1]]; {
			case known && strings.HasSuffix(m[0], "}"):
			case len(p.Params) > 0 && m[0] != "$${":
				d.refuse(path, "%.80s names no parameter; declare it under params, or write $${ where ${ is meant", m[0])
			case len(p.Params) == 0 && paramName.MatchString(m[1]) && strings.HasSuffix(m[0], "}"):
				d.refuse(path, "%.80s is a parameter's place, and the definition has no params", m[0])
			}
		}
	})
}

// check reports why the parameter cannot have a value.
func (p Param) check(name, value string) error {
	pattern := defaultValue
	if p.Pattern != "" {
		var err error
		if pattern, err = regexp.Compile(`^(?:` + p.Pattern + `)$`); err != nil {
			return athena.Errorf(athena.CodeInvalidRequest, "the pattern of parameter %s is not a regular expression", name)
		}
	}
	switch {
	case len(value) > mostValue:
		return athena.Errorf(athena.CodeInvalidRequest, "the value of parameter %s has %d bytes; the most is %d", name, len(value), mostValue)
	case !pattern.MatchString(value) && p.Pattern == "":
		return athena.Errorf(athena.CodeInvalidRequest, "parameter %s is %q; without a pattern of its own it holds letters, digits and _ . : / @ + - only", name, clip(value))
	case !pattern.MatchString(value):
		return athena.Errorf(athena.CodeInvalidRequest, "parameter %s is %q; it must match %s", name, clip(value), p.Pattern)
	}
	return nil
}

// Instantiate returns the definition that a template is with these values: its
// texts filled in, and checked anew. Of a definition without params it returns a
// copy. Errors are invalid_request and name params.NAME, or the field that a
// value has spoiled.
func (p *Pipeline) Instantiate(values map[string]string) (*Pipeline, error) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, ok := p.Params[name]; !ok {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "parameter %q is unknown%s", clip(name), hint(name, slices.Sorted(maps.Keys(p.Params)))).At("params." + name)
		}
	}
	filled := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(p.Params)) {
		param := p.Params[name]
		value, given := values[name]
		if !given && param.Default == nil {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "parameter %s is missing", name).At("params." + name)
		}
		if !given {
			value = *param.Default
		}
		if err := param.check(name, value); err != nil {
			return nil, athena.AsError(err).At("params." + name)
		}
		filled[name] = value
	}
	bare := *p
	bare.Params = nil
	root := tree(&bare)
	if len(p.Params) > 0 {
		texts(root, "", func(_ string, n *yaml.Node) {
			n.Value = placeholder.ReplaceAllStringFunc(n.Value, func(m string) string {
				if m == "$${" {
					return "${"
				}
				return filled[strings.TrimSuffix(strings.TrimPrefix(m, "${"), "}")]
			})
		})
	}
	// The values are in, and what they hold is no placeholder: it is not looked at
	// as one again.
	d := &decoder{lines: map[string]int{}}
	d.plain(root, "", 0)
	out := new(Pipeline)
	d.decode(root, "", out)
	d.lines = nil
	d.check(out)
	for i := range d.problems {
		d.problems[i].Line = 0
	}
	if d.failed() {
		return nil, d.err()
	}
	return out, nil
}

// Clone returns a copy that shares nothing with p.
func (p *Pipeline) Clone() *Pipeline {
	out := new(Pipeline)
	d := &decoder{lines: map[string]int{}}
	d.decode(tree(p), "", out)
	return out
}

// tree is the document that a definition is.
func tree(p *Pipeline) *yaml.Node {
	data := Encode(p)
	return (&jsonTree{data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}).value(&decoder{}, 0)
}

// texts calls fn with all texts of a document, names of columns among them; those
// of params are left out.
func texts(n *yaml.Node, path string, fn func(path string, n *yaml.Node)) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			at := join(path, k.Value)
			if at == "params" {
				continue
			}
			fn(at, k)
			texts(v, at, fn)
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			texts(v, index(path, i), fn)
		}
	case yaml.ScalarNode:
		if n.Tag == "!!str" {
			fn(path, n)
		}
	}
}
