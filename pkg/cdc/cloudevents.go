package cdc

import "net/url"

// cloudEvents is the JSON format of CloudEvents 1.0, in structured mode, with
// the change in the athena envelope as its data. The pair of source and id is
// unique to a change and stays the same when it is sent again. A change without
// a transaction has no time, since the engine gave none; a message of the log
// has no subject.
type cloudEvents struct{ change Change }

func (*cloudEvents) ContentType() string { return "application/cloudevents+json" }

func (e *cloudEvents) Append(dst, line []byte) ([]byte, error) {
	c := &e.change
	if err := Decode(line, c); err != nil {
		return dst, err
	}
	client := url.PathEscape(c.Client) // source is a URI reference
	dst = append(dst, `{"specversion":"1.0","id":"`...)
	dst = append(dst, client...)
	dst = append(dst, '/')
	dst = append(dst, c.Pos...)
	dst = append(dst, `","source":"/athena/cdc/`...)
	dst = append(dst, client...)
	dst = append(dst, `","type":"athena.cdc.`...)
	dst = append(dst, c.Op...)
	if c.Schema != "" || c.Table != "" {
		dst = append(dst, `","subject":"`...)
		dst = append(appendText(dst, c.Schema), '.')
		dst = appendText(dst, c.Table)
	}
	if c.Tx != nil {
		dst = append(dst, `","time":"`...)
		dst = appendTime(dst, c.Tx.At)
	}
	dst = append(dst, `","datacontenttype":"application/json","data":`...)
	dst = append(dst, line...)
	return append(dst, '}'), nil
}
