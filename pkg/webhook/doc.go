// Package webhook announces the end of deferred jobs to the outside: what is
// sent, how it is signed, and to which addresses it may go. Messages follow the
// Standard Webhooks specification.
//
// It knows HTTP and nothing of the bus: who orders a delivery, and when one is
// tried again, is said elsewhere.
//
// The laws, cited where they are enforced:
//
//  1. No connection is made to an address that the guard does not permit; what
//     counts is the address connected to, whatever the name resolved to before.
//  2. Redirects are not followed, and no proxy is taken from the environment.
//  3. Rows are never sent: the receiver fetches them with a key of its own.
package webhook
