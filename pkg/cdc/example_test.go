package cdc_test

import (
	"encoding/json"
	"fmt"

	"github.com/athena-pipelines/athena/pkg/cdc"
)

// A message of a stream holds one change to a line.
func Example() {
	message := []byte(`{"pos":"0000000001B3A2F8.00000001","op":"insert","client":"shop","schema":"public","table":"orders","key":{"id":7},"after":{"id":7,"status":"new"},"tx":{"id":"771","pos":"0000000001B3A2F8","n":1,"at":"2026-11-22T10:00:00.123456Z"}}
{"pos":"0000000001B3A2F8.00000002","op":"update","client":"shop","schema":"public","table":"orders","key":{"id":7},"after":{"id":7,"status":"paid"},"unchanged":["description"],"tx":{"id":"771","pos":"0000000001B3A2F8","n":2,"last":true,"at":"2026-11-22T10:00:00.123456Z"}}
`)
	var done cdc.Position // the last change that was handled, kept with what it did
	var c cdc.Change      // Decode uses its memory again
	for line := range cdc.Lines(message) {
		if err := cdc.Decode(line, &c); err != nil {
			fmt.Println(err)
			return
		}
		if c.Pos <= done { // seen before
			continue
		}
		var order struct {
			ID     int
			Status string
		}
		if err := json.Unmarshal(c.After, &order); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(c.Op, c.Schema+"."+c.Table, order.ID, order.Status, c.Unchanged, c.Tx.Last)
		done = c.Pos
	}
	fmt.Println("go on behind", done)
	// Output:
	// insert public.orders 7 new [] false
	// update public.orders 7 paid [description] true
	// go on behind 0000000001B3A2F8.00000002
}

func ExampleNewEnvelope() {
	events, err := cdc.NewEnvelope("cloudevents")
	if err != nil {
		fmt.Println(err)
		return
	}
	line := []byte(`{"pos":"0000000001B3A2F8.00000001","op":"truncate","client":"shop","schema":"public","table":"orders"}`)
	event, err := events.Append(nil, line)
	fmt.Println(string(event), err)
	// Output:
	// {"specversion":"1.0","id":"shop/0000000001B3A2F8.00000001","source":"/athena/cdc/shop","type":"athena.cdc.truncate","subject":"public.orders","datacontenttype":"application/json","data":{"pos":"0000000001B3A2F8.00000001","op":"truncate","client":"shop","schema":"public","table":"orders"}} <nil>
}
