// Package openapi holds the description of the HTTP API, OpenAPI 3.1, and
// renders it as a page. The document is written by hand and comes first; tests
// hold the routes and their answers to it.
package openapi

import _ "embed"

//go:embed openapi.yaml
var document string

// Document returns the description of the API, in YAML.
func Document() []byte { return []byte(document) }
