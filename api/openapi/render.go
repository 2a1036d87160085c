package openapi

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
)

//go:embed page.html
var pageTemplate string

//go:embed page.css
var pageStyle string

// Render makes one HTML page of the document, which fetches nothing and runs no
// script, and the Content-Security-Policy that says so.
func Render() (html []byte, policy string, err error) {
	var root yaml.Node
	if err := yaml.Unmarshal(Document(), &root); err != nil {
		return nil, "", fmt.Errorf("openapi: read the document: %w", err)
	}
	t, err := template.New("page").Parse(pageTemplate)
	if err != nil {
		return nil, "", fmt.Errorf("openapi: read the template: %w", err)
	}
	d := doc{root.Content[0]}
	var b bytes.Buffer
	view := d.view()
	view.Style = template.CSS(pageStyle)
	if err := t.Execute(&b, view); err != nil {
		return nil, "", fmt.Errorf("openapi: render: %w", err)
	}
	// The browser hashes what stands between the tags.
	sum := sha256.Sum256([]byte(pageStyle))
	policy = "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return b.Bytes(), policy, nil
}

// The page, as its template sees it.
type (
	view struct {
		Title, Summary string
		About          template.HTML
		Style          template.CSS
		Groups         []group
		Schemas        []schema
		Errors         []failure
	}
	group struct {
		Name       string
		About      template.HTML
		Operations []operation
	}
	operation struct {
		ID, Method, Path, Summary, Curl string
		Nav                             template.HTML // the path, which may break behind a slash
		About                           template.HTML
		Public                          bool
		Parameters                      []field
		BodyType                        template.HTML
		Body                            []field
		Examples                        []example
		Responses                       []response
	}
	field struct {
		Name, In string
		Required bool
		Type     template.HTML
		About    template.HTML
	}
	example  struct{ Name, Text string }
	response struct {
		Status   string
		About    template.HTML
		Kinds    []string
		Type     template.HTML
		Headers  []field
		Examples []example
	}
	schema struct {
		Name   string
		Type   template.HTML
		About  template.HTML
		Fields []field
	}
	failure struct {
		Code, Title string
		Status      int
		Retryable   bool
	}
)

func (d doc) view() view {
	info := d.at("info")
	v := view{Title: info.text("title"), Summary: info.text("summary"), About: prose(info.text("description"))}
	for _, tag := range d.at("tags").items() {
		g := group{Name: tag.text("name"), About: prose(tag.text("description"))}
		for path, item := range d.at("paths").members() {
			for method, op := range item.members() {
				if op.at("tags").items()[0].node.Value == g.Name {
					g.Operations = append(g.Operations, d.operation(strings.ToUpper(method), path, op))
				}
			}
		}
		v.Groups = append(v.Groups, g)
	}
	for name, s := range d.at("components", "schemas").members() {
		v.Schemas = append(v.Schemas, schema{name, d.typeOf(s), prose(s.text("description")), d.fields(s)})
	}
	for _, code := range athena.Codes() {
		v.Errors = append(v.Errors, failure{string(code), envelope.Title(code), envelope.Status(code), code.Retryable()})
	}
	return v
}

func (d doc) operation(method, path string, op value) operation {
	o := operation{
		ID: op.text("operationId"), Method: method, Path: path, Summary: op.text("summary"),
		Nav:   template.HTML(strings.ReplaceAll(esc(path), "/", "/<wbr>")),
		About: prose(op.text("description")),
	}
	if security, ok := op.find("security"); ok {
		o.Public = len(security.items()) == 0
	}
	for _, p := range op.at("parameters").items() {
		p = d.resolve(p)
		o.Parameters = append(o.Parameters, field{
			Name: p.text("name"), In: p.text("in"), Required: p.text("required") == "true",
			Type: d.typeOf(p.at("schema")), About: prose(p.text("description")),
		})
	}
	body := d.resolve(op.at("requestBody")).at("content", "application/json")
	if s, ok := body.find("schema"); ok {
		o.BodyType, o.Body = d.typeOf(s), d.fields(d.resolve(s))
		o.Examples = examples(body)
	}
	o.Curl = d.curl(o, op)
	for status, r := range op.at("responses").members() {
		r = d.resolve(r)
		out := response{Status: status, About: prose(r.text("description"))}
		for name, h := range r.at("headers").members() {
			out.Headers = append(out.Headers, field{Name: name, Type: d.typeOf(h.at("schema")), About: prose(h.text("description"))})
		}
		for kind, media := range r.at("content").members() {
			out.Kinds = append(out.Kinds, kind)
			if out.Type == "" {
				out.Type = d.typeOf(media.at("schema"))
			}
			for _, e := range examples(media) {
				out.Examples = append(out.Examples, example{kind, e.Text})
			}
		}
		o.Responses = append(o.Responses, out)
	}
	return o
}

// curl writes a line that works when ATHENA_URL and ATHENA_KEY are set.
func (d doc) curl(o operation, op value) string {
	path, query := o.Path, ""
	line := "curl"
	if o.Method != "GET" {
		line += " -X " + o.Method
	}
	var headers string
	for _, p := range op.at("parameters").items() {
		p = d.resolve(p)
		sample := p.at("example")
		if sample.node != nil && len(sample.items()) > 0 {
			sample = sample.items()[0]
		}
		if sample.node == nil {
			continue
		}
		switch text := sample.node.Value; p.text("in") {
		case "path":
			path = strings.ReplaceAll(path, "{"+p.text("name")+"}", text)
		case "query":
			query += "&" + p.text("name") + "=" + text
		case "header":
			headers += " \\\n  -H '" + p.text("name") + ": " + text + "'"
		}
	}
	path = strings.NewReplacer("{n}", "0", "{seq}", "1").Replace(path)
	if query != "" {
		path += "?" + query[1:]
	}
	line += ` "$ATHENA_URL` + path + `"`
	if !o.Public {
		line += " \\\n" + `  -H "Authorization: Bearer $ATHENA_KEY"`
	}
	line += headers
	if len(o.Examples) > 0 {
		line += " \\\n  -H 'Content-Type: application/json' \\\n  -d '" + strings.ReplaceAll(o.Examples[0].Text, "'", `'\''`) + "'"
	}
	return line
}

// fields lists the members of an object, those of allOf among them.
func (d doc) fields(s value) (list []field) {
	required := map[string]bool{}
	for _, name := range s.at("required").items() {
		required[name.node.Value] = true
	}
	for name, p := range s.at("properties").members() {
		list = append(list, field{Name: name, Required: required[name], Type: d.typeOf(p), About: prose(p.text("description"))})
	}
	return list
}

// typeOf says in a few words what a schema takes, with links to those that have
// a name.
func (d doc) typeOf(s value) template.HTML {
	switch {
	case s.node == nil:
		return ""
	case s.text("$ref") != "":
		name := s.text("$ref")[strings.LastIndex(s.text("$ref"), "/")+1:]
		return template.HTML(`<a href="#schema-` + esc(name) + `">` + esc(name) + `</a>`)
	}
	if c, ok := s.find("const"); ok {
		return code(c.node.Value)
	}
	if list := s.at("enum").items(); len(list) > 0 {
		words := make([]string, len(list))
		for i, v := range list {
			words[i] = string(code(v.node.Value))
		}
		return template.HTML(strings.Join(words, " · "))
	}
	for _, union := range []struct{ key, word string }{{"oneOf", " or "}, {"anyOf", " or "}, {"allOf", " with "}} {
		if list := s.at(union.key).items(); len(list) > 0 && s.text("type") == "" {
			words := make([]string, len(list))
			for i, v := range list {
				words[i] = string(d.typeOf(v))
			}
			return template.HTML(strings.Join(words, union.word))
		}
	}
	kind := s.text("type")
	switch {
	case kind == "array":
		of := d.typeOf(s.at("items"))
		if of == "" {
			return "array"
		}
		return "array of " + of
	case s.at("properties", "data").node != nil && kind == "":
		return template.HTML(code("data")) + ": " + d.typeOf(s.at("properties", "data"))
	case kind == "":
		return "any"
	}
	words := esc(kind)
	if f := s.text("format"); f != "" {
		words += " (" + esc(f) + ")"
	}
	if low, high := s.text("minimum"), s.text("maximum"); low != "" && high != "" {
		words += " " + esc(low) + "–" + esc(high)
	} else if low != "" {
		words += " ≥ " + esc(low)
	}
	if def := s.text("default"); def != "" {
		words += ", " + string(code(def)) + " by default"
	}
	return template.HTML(words)
}

func code(s string) template.HTML { return template.HTML("<code>" + esc(s) + "</code>") }

func esc(s string) string { return template.HTMLEscapeString(s) }

// prose renders what the document uses of Markdown: paragraphs, `code`,
// **strong** and *emphasis*.
func prose(s string) template.HTML {
	var b strings.Builder
	for para := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		if para = strings.TrimSpace(para); para == "" {
			continue
		}
		b.WriteString("<p>")
		for i, part := range strings.Split(esc(para), "`") {
			if i%2 == 1 {
				b.WriteString("<code>" + part + "</code>")
				continue
			}
			b.WriteString(pairs(pairs(part, "**", "strong"), "*", "em"))
		}
		b.WriteString("</p>")
	}
	return template.HTML(b.String())
}

// pairs puts what stands between two marks into a tag.
func pairs(s, mark, tag string) string {
	parts := strings.Split(s, mark)
	if len(parts)%2 == 0 {
		return s // a mark without its other half is only a character
	}
	var b strings.Builder
	for i, p := range parts {
		if i%2 == 1 {
			p = "<" + tag + ">" + p + "</" + tag + ">"
		}
		b.WriteString(p)
	}
	return b.String()
}
