// Package cdc is the model of a committed change of one row, and its forms on
// the wire: the athena envelope, which is what streams hold, and the debezium
// and cloudevents envelopes, which are made of it on request.
//
// It imports the standard library only, and knows neither engines nor the bus.
//
// Laws that the code cites:
//
//  1. Positions of a stream are compared as text and strictly increase; a change
//     has the same position after any replay.
//  2. What the engine did not give is absent and never null.
//  3. A change is one line: its JSON holds no line break.
package cdc
