package athena

import (
	"bytes"
	"encoding/json"
	"math/bits"
	"strings"
)

// A Capability names one family of operations that a client may be allowed to
// perform. Its wire name is stable: dashboards and stored definitions hold it.
type Capability uint8

// The capabilities of the founding contract, and the two of the /pipelines
// family.
const (
	GatewayQuery Capability = iota
	RawSQL
	RawCQL
	SchemaRead
	MigrationsRead
	Provisioning
	DeferredQuery
	CDC
	ObjectRead
	ObjectWrite
	PipelineSource
	PipelineSink
)

var capabilityNames = [...]string{
	GatewayQuery:   "gateway_query",
	RawSQL:         "raw_sql",
	RawCQL:         "raw_cql",
	SchemaRead:     "schema_read",
	MigrationsRead: "migrations_read",
	Provisioning:   "provisioning",
	DeferredQuery:  "deferred_query",
	CDC:            "cdc",
	ObjectRead:     "object_read",
	ObjectWrite:    "object_write",
	PipelineSource: "pipeline_source",
	PipelineSink:   "pipeline_sink",
}

// String gives the wire name.
func (c Capability) String() string {
	if int(c) < len(capabilityNames) {
		return capabilityNames[c]
	}
	return "unknown"
}

// MarshalText gives the wire name.
func (c Capability) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// ParseCapability reads a wire name.
func ParseCapability(name string) (Capability, bool) {
	for i, n := range capabilityNames {
		if n == name {
			return Capability(i), true
		}
	}
	return 0, false
}

// Capabilities is a set of capabilities. The zero value is the empty set, and
// sets compare with ==. On the wire it is an object of booleans; the bits never
// leave the process, so reordering the constants breaks nothing stored.
type Capabilities uint64

// Allow returns the set of the given capabilities.
func Allow(cs ...Capability) (s Capabilities) {
	for _, c := range cs {
		s |= 1 << c
	}
	return s
}

// Has reports whether c is in the set.
func (s Capabilities) Has(c Capability) bool { return s&(1<<c) != 0 }

// Minus returns what s holds and other does not.
func (s Capabilities) Minus(other Capabilities) Capabilities { return s &^ other }

// List returns the members in their declared order.
func (s Capabilities) List() []Capability {
	list := make([]Capability, 0, bits.OnesCount64(uint64(s)))
	for c := range Capability(len(capabilityNames)) {
		if s.Has(c) {
			list = append(list, c)
		}
	}
	return list
}

// String lists the wire names, separated by commas.
func (s Capabilities) String() string {
	names := make([]string, 0, len(capabilityNames))
	for _, c := range s.List() {
		names = append(names, c.String())
	}
	return strings.Join(names, ", ")
}

// MarshalJSON spells every capability out, so that what is not granted can be
// seen as well as what is.
func (s Capabilities) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for c := range Capability(len(capabilityNames)) {
		if c > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, c.String()...)
		b = append(b, `":`...)
		if s.Has(c) {
			b = append(b, "true"...)
		} else {
			b = append(b, "false"...)
		}
	}
	return append(b, '}'), nil
}

// UnmarshalJSON refuses a name that it does not know: a typo must not quietly
// take a permission away.
func (s *Capabilities) UnmarshalJSON(b []byte) error {
	if bytes.Equal(bytes.TrimSpace(b), []byte("null")) {
		*s = 0
		return nil
	}
	var set map[string]json.RawMessage
	if err := json.Unmarshal(b, &set); err != nil {
		return Errorf(CodeInvalidRequest, "capabilities must be an object of booleans, such as {\"gateway_query\": true}").At("capabilities")
	}
	var out Capabilities
	for name, raw := range set {
		c, ok := ParseCapability(name)
		if !ok {
			return Errorf(CodeInvalidRequest, "unknown capability %q; the known ones are %s", name, strings.Join(capabilityNames[:], ", ")).At("capabilities." + name)
		}
		switch string(raw) {
		case "true":
			out |= Allow(c)
		case "false":
		default:
			return Errorf(CodeInvalidRequest, "capability %q is %s; it must be true or false", name, clip(string(raw), 40)).At("capabilities." + name)
		}
	}
	*s = out
	return nil
}

// clip shortens user input that is quoted back in a message.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
