package plan

import (
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Class says how often a row can have its effect.
type Class string

// The classes.
const (
	ExactlyOnce     Class = "exactly_once"     // once, whatever crashes
	EffectivelyOnce Class = "effectively_once" // it may be repeated, without effect
	AtLeastOnce     Class = "at_least_once"    // it may be repeated, and that shows
)

// Delivery says what a pipeline promises, and by what.
type Delivery struct {
	Class  Class  `json:"class"`
	Reason string `json:"reason"`
}

// delivery says what a pipeline promises. Resnapshots says that its capture reads
// tables anew after it has lost changes; loose that the sink's engine commits no rows
// together with their checkpoint.
func delivery(p *spec.Pipeline, resnapshots, loose bool) (checkpoint string, d Delivery) {
	unit := "each task"
	if p.Streams() {
		unit = "each commit"
	}
	if p.Sink.Objects != nil {
		return "with the list of the objects, in one write, before they appear", Delivery{EffectivelyOnce,
			"the objects of " + unit + " are staged, the decision to have them is stored once, and to publish them again has no effect; readers who go by the manifest see them all at once"}
	}
	checkpoint = "in the target's database, in the transaction of the rows"
	if loose {
		checkpoint = "in the target's database, once the rows of " + unit + " are acknowledged"
	}
	switch {
	case p.Streams() && p.Sink.Mode == driver.Append && resnapshots:
		return checkpoint, Delivery{AtLeastOnce, "the capture reads its tables anew after a loss, and the log has those rows again then"}
	case loose:
		return checkpoint, Delivery{EffectivelyOnce, "each row is written under its key at a time of its own, so that to write it again has no effect, however late; it is seen before the checkpoint is stored"}
	case p.Sink.Mode.Staged():
		return checkpoint, Delivery{ExactlyOnce, "rows are staged, and take effect at once in the transaction that has the checkpoint"}
	}
	return checkpoint, Delivery{ExactlyOnce, "the rows of " + unit + " are committed in the transaction that has the checkpoint"}
}
