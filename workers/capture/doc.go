// Package capture is the worker that stores the changes of clients in their
// streams.
//
// For each client that has a capture and that it can serve, a worker seeks a
// lease; who has it runs one session after the other: it finds the end of the
// stream, opens the source behind it, and writes. A session ends with the first
// thing that goes wrong, whatever it is; the next one begins where the stream
// ends, after a pause that grows. So there is one way to go on, and it is
// walked at every start.
//
// Laws that the code cites:
//
//  1. Stored in the stream, then confirmed to the source. Never otherwise.
//  2. One writer per stream: it has the lease, and each message expects the one
//     before it to be the last. Who was overtaken stores nothing.
//  3. A change that cannot be encoded is a dead letter before anything behind it
//     is confirmed, or it stops the capture.
//  4. Rows of a snapshot that are read beside the stream belong where the
//     stream is held meanwhile: they have in them everything before that place,
//     and what they have from behind it comes again.
//
// The package knows no engine: it meets the source on the road (pkg/dispatch).
package capture
