// Package examples has the definitions of pipelines that a user would start from,
// all on the sample shop of `athena dev` and its bucket; three of them know a client
// events beside, which stands for a ScyllaDB. Each is planned, tested and run by the
// tests of the program, those three on a double of ScyllaDB.
package examples

import "embed"

// Files has them, each under its pipeline's name and ".yaml".
//
//go:embed *.yaml
var Files embed.FS
