package runner

import (
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// compile readies the transforms for rows of a schema.
func (j *job) compile(s *record.Schema) (*transform.Chain, error) {
	name := j.spec.Name
	if name == "" {
		name = j.run.ID
	}
	c, err := transform.Compile(j.spec.Transforms, s, transform.Env{
		Pipeline: name, Changes: j.spec.Source.CDC != nil,
		ByKey: j.spec.Sink.Table != "" && j.spec.Sink.Mode == driver.Upsert, Tables: j.spec.Sink.Table != "",
	})
	return c, at(err, "transforms")
}

// agree holds the schema of rows that come against the one that is expected; nil
// is any.
func (j *job) agree(expected, actual *record.Schema) (*transform.Agreement, error) {
	if expected == nil {
		expected = actual
	}
	a, err := transform.Agree(expected, actual, j.spec.Schema)
	return a, at(err, "source")
}

// A chained is what takes rows of one schema through.
type chained struct {
	agreed *transform.Agreement
	*transform.Chain
}

// batchChains takes the rows of a task through one chain, which may hold state.
type batchChains struct {
	job  *job
	base *transform.Chain
	by   map[*record.Schema]*chained
}

func (j *job) batchChains() (*batchChains, error) {
	a, err := j.agree(j.run.Expected, j.run.Schema)
	if err != nil {
		return nil, err
	}
	c, err := j.compile(a.Out)
	if err != nil {
		return nil, err
	}
	return &batchChains{job: j, base: c, by: map[*record.Schema]*chained{j.run.Schema: {a, c}}}, nil
}

// of returns what takes the rows of b through. A source that has changed since the
// run was prepared is held against the contract; what the sink was not prepared
// for waits for the next run.
func (c *batchChains) of(b *record.Batch) (*chained, error) {
	if found, ok := c.by[b.Schema]; ok {
		return found, nil
	}
	first := c.by[c.job.run.Schema]
	found := first
	if !b.Schema.Equal(c.job.run.Schema) {
		a, err := c.job.agree(first.agreed.Expected, b.Schema)
		if err != nil {
			return nil, err
		}
		if !a.Out.Equal(first.agreed.Out) {
			return nil, athena.Errorf(athena.CodeSchemaChanged, "the columns of the source changed while the run was at work (%s); start another run", a).With("stage", "source")
		}
		found = &chained{a, c.base}
	}
	c.by[b.Schema] = found
	return found, nil
}
