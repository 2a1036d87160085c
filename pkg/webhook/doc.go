// Package webhook is what leaves for the outside: messages that announce the end
// of deferred jobs, messages of changes, how they are signed, and to which
// addresses they may go. Messages follow the Standard Webhooks specification.
//
// It knows HTTP and nothing of the bus: who orders a delivery, and when one is
// tried again, is said elsewhere.
//
// The laws, cited where they are enforced:
//
//  1. No connection is made to an address that the guard does not permit; what
//     counts is the address connected to, whatever the name resolved to before.
//  2. Redirects are not followed, and no proxy is taken from the environment.
//  3. A job's rows are never sent: the receiver fetches them with a key of its
//     own. Changes are sent to subscriptions that asked for just that.
package webhook
