package spec

import (
	"bytes"
	"encoding/json"
	"reflect"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// An Ordered is an object whose members keep the order that they are written in:
// they make columns, and a table has its columns in an order. No name stands twice
// in what was decoded.
type Ordered[V any] []Member[V]

// A Member is one of an Ordered.
type Member[V any] struct {
	Name  string
	Value V
}

// members is what the decoder knows of an Ordered.
type members interface {
	value() reflect.Type
	put(name string, value reflect.Value)
}

func (*Ordered[V]) value() reflect.Type { return reflect.TypeFor[V]() }

func (o *Ordered[V]) put(name string, value reflect.Value) {
	*o = append(*o, Member[V]{name, value.Interface().(V)})
}

// MarshalJSON writes an object with the members in their order.
func (o Ordered[V]) MarshalJSON() ([]byte, error) {
	if o == nil {
		return []byte("null"), nil
	}
	dst := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			dst = append(dst, ',')
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(m.Value); err != nil {
			return nil, err
		}
		dst = append(append(appendString(dst, m.Name), ':'), bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
	}
	return append(dst, '}'), nil
}

// UnmarshalJSON reads an object; a name that is given twice is refused.
func (o *Ordered[V]) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	begin, err := dec.Token()
	switch {
	case err != nil:
		return err
	case begin == nil:
		*o = nil
		return nil
	case begin != json.Delim('{'):
		return athena.Errorf(athena.CodeInvalidRequest, "%s is no object", clip(string(data)))
	}
	list, seen := Ordered[V]{}, map[string]bool{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return err
		}
		m := Member[V]{Name: name.(string)}
		if seen[m.Name] {
			return athena.Errorf(athena.CodeInvalidRequest, "%q is given twice", clip(m.Name))
		}
		if err := dec.Decode(&m.Value); err != nil {
			return err
		}
		list, seen[m.Name] = append(list, m), true
	}
	*o = list
	return nil
}
