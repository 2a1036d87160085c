package cdc

import (
	"fmt"
	"strings"
)

// An Envelope turns changes in the athena envelope into the form that a reader
// asked for. It is not safe for concurrent use.
type Envelope interface {
	// Append appends what becomes of one line: a JSON value without line breaks,
	// or nothing where the form has none for a change that a reader of that form
	// does not miss. Any other change that the form cannot express is an error,
	// and so is a line that is no change; dst then comes back as it was.
	Append(dst, line []byte) ([]byte, error)
	// ContentType is the media type of one value.
	ContentType() string
}

// The names of the envelopes.
const (
	EnvelopeAthena      = "athena"
	EnvelopeDebezium    = "debezium"
	EnvelopeCloudEvents = "cloudevents"
)

// EnvelopeNames lists the envelopes.
func EnvelopeNames() []string {
	return []string{EnvelopeAthena, EnvelopeDebezium, EnvelopeCloudEvents}
}

// NewEnvelope returns the envelope of that name; the empty name is athena's. Its
// error is for the caller to read.
func NewEnvelope(name string) (Envelope, error) {
	switch name {
	case "", EnvelopeAthena:
		return asItIs{}, nil
	case EnvelopeDebezium:
		return newDebezium(), nil
	case EnvelopeCloudEvents:
		return &cloudEvents{}, nil
	}
	return nil, fmt.Errorf("envelope %.40q is unknown; it must be one of %s", name, strings.Join(EnvelopeNames(), ", "))
}

// asItIs is the athena envelope. It looks at nothing.
type asItIs struct{}

func (asItIs) Append(dst, line []byte) ([]byte, error) { return append(dst, line...), nil }
func (asItIs) ContentType() string                     { return "application/json" }
