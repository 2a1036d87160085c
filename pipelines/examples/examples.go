// Package examples has the definitions of pipelines that a user would start from,
// all on the sample shop of `athena dev` and its bucket. Each is planned, tested and
// run by the tests of the program.
package examples

import "embed"

// Files has them, each under its pipeline's name and ".yaml".
//
//go:embed *.yaml
var Files embed.FS
