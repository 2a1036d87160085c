// Package athena is the domain: what a client is, what it may do, how its
// backend is reached, and which errors a caller can meet.
//
// It imports the standard library only and knows nothing of HTTP, NATS or any
// driver. Everything else in the module is written in these terms.
package athena
