package stage

import (
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/dispatch"
)

// Kinds of sources and sinks, as a definition names them.
const (
	KindTable    = "table"
	KindQuery    = "query"
	KindCDC      = "cdc"
	KindObjects  = "objects"
	KindDeferred = "deferred"
)

// sourceNeeds and sinkNeeds say what a client must grant to be a stage of a kind.
var (
	sourceNeeds = map[string][]athena.Capability{
		KindTable:    {athena.PipelineSource, athena.GatewayQuery},
		KindQuery:    {athena.PipelineSource, athena.GatewayQuery},
		KindCDC:      {athena.PipelineSource, athena.CDC},
		KindObjects:  {athena.PipelineSource, athena.ObjectRead},
		KindDeferred: {athena.PipelineSource, athena.DeferredQuery},
	}
	sinkNeeds = map[string][]athena.Capability{
		KindTable:   {athena.PipelineSink, athena.GatewayQuery},
		KindObjects: {athena.PipelineSink, athena.ObjectWrite},
	}
)

// SourceKind is the kind of a source.
func SourceKind(s spec.Source) string {
	switch {
	case s.Table != "":
		return KindTable
	case s.Query != "":
		return KindQuery
	case s.CDC != nil:
		return KindCDC
	case s.Objects != nil:
		return KindObjects
	}
	return KindDeferred
}

// SinkKind is the kind of a sink.
func SinkKind(s spec.Sink) string {
	if s.Objects != nil {
		return KindObjects
	}
	return KindTable
}

// SourceOp is what reading a source takes on the road.
func SourceOp(s spec.Source) dispatch.Op { return op(sourceNeeds[SourceKind(s)]) }

// SinkOp is what writing to a sink takes on the road.
func SinkOp(s spec.Sink) dispatch.Op { return op(sinkNeeds[SinkKind(s)]) }

func op(needs []athena.Capability) dispatch.Op {
	return dispatch.Op{Family: "pipelines", Right: auth.Pipelines, Needs: needs}
}
