// Package chaos breaks what a capture stands on, again and again, while a
// database is written to, and then has bench/judge decide whether the stream of
// changes told the truth.
//
// The processes are real: server and broker in one, the workers in others,
// PostgreSQL beside them, and a proxy between them that fails as networks do.
package chaos
