package rows

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// AppendCSVHeader appends the line of column names; nothing where there are no
// columns. CSV is as RFC 4180 has it, in UTF-8 and with a header.
func AppendCSVHeader(dst []byte, columns []driver.Column) []byte {
	if len(columns) == 0 {
		return dst
	}
	for i, c := range columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendField(dst, c.Name)
	}
	return append(dst, "\r\n"...)
}

// AppendCSV appends one row, given as the JSON object that driver.Rows writes,
// whose members stand in the order of the columns. NULL is an empty field and
// an empty text is "", so that the two can be told apart; objects and arrays
// stay JSON.
func AppendCSV(dst, object []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("rows: a row is not a JSON object")
	}
	for i := 0; dec.More(); i++ {
		if _, err := dec.Token(); err != nil {
			return nil, fmt.Errorf("rows: a row's member: %w", err)
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("rows: a row's value: %w", err)
		}
		switch value[0] {
		case 'n':
		case '"':
			var text string
			if err := json.Unmarshal(value, &text); err != nil {
				return nil, fmt.Errorf("rows: a row's text: %w", err)
			}
			dst = appendField(dst, text)
		case '{', '[':
			dst = appendField(dst, string(value))
		default:
			dst = append(dst, value...)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("rows: a row ends too early: %w", err)
	}
	return append(dst, "\r\n"...), nil
}

// appendField quotes where it must: empty text, separators, quotes, line ends
// and outer blanks.
func appendField(dst []byte, s string) []byte {
	if s != "" && s[0] != ' ' && s[len(s)-1] != ' ' && !bytes.ContainsAny([]byte(s), ",\"\r\n") {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for _, b := range []byte(s) {
		if b == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, b)
	}
	return append(dst, '"')
}
