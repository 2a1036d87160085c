package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// Changes is a batch of a subscription's changes.
type Changes struct {
	Client, Subscription string
	Since                time.Time // when the subscription was made
	// From is the cursor that the batch lies behind, and Cursor the one to go on
	// from: there may be changes between the last one and it that the
	// subscription does not want.
	From, Cursor cdc.Position
	First, Last  cdc.Position // of the changes
	At           time.Time    // when the batch was made
	// Count and JSON are the changes, each in the subscription's envelope, with
	// commas between.
	Count int
	JSON  []byte
}

// ID is the webhook-id: the same whenever the same changes are sent to the same
// subscription, however often, and another for any others. A receiver that drops
// what it has seen therefore never drops a change that it has not.
func (c *Changes) ID() string {
	h := sha256.New()
	for _, part := range []string{c.Client, c.Subscription, strconv.FormatInt(c.Since.UnixNano(), 36), string(c.First), string(c.Last)} {
		h.Write([]byte(part + "\x00"))
	}
	return "cdc_" + hex.EncodeToString(h.Sum(nil)[:16])
}

// Payload is the message's body.
func (c *Changes) Payload() []byte {
	dst := make([]byte, 0, len(c.JSON)+512)
	dst = append(dst, `{"type":"cdc.changes","timestamp":"`...)
	dst = c.At.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = cdc.AppendString(append(dst, `","data":{"client":`...), c.Client)
	dst = cdc.AppendString(append(dst, `,"subscription":`...), c.Subscription)
	dst = cdc.AppendString(append(dst, `,"from":`...), string(c.From))
	dst = cdc.AppendString(append(dst, `,"cursor":`...), string(c.Cursor))
	dst = append(append(dst, `,"changes":[`...), c.JSON...)
	return append(dst, "]}}"...)
}
