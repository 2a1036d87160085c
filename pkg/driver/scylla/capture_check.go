package scylla

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gocql/gocql"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// The levels of findings.
const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "error"
)

// The names of findings. Those of the parts of a table's option cdc are the
// option's own.
const (
	findVersion    = "server_version"
	findLevel      = "consistency"
	findTable      = "table"
	findNames      = "names"
	findTypes      = "types"
	findOption     = "cdc"
	findDelta      = "delta"
	findPreimage   = "preimage"
	findPostimage  = "postimage"
	findTTL        = "ttl"
	findExpiry     = "default_time_to_live"
	findLayout     = "layout"
	findGeneration = "generation"
	findPrivileges = "privileges"
)

// shortLogTTL is how long a log must keep rows so that a worker may be away for a
// while.
const shortLogTTL = time.Hour

// CheckChanges looks at the cluster and at each table: whether there is a log, how
// long it keeps rows and what it says of them, whether the session's role may read
// it, whether its streams are told, and whether scylla-cdc-go can read what it
// holds. If no tables are named, all that could be captured are described, and
// what stands in their way is not.
func (b *Backend) CheckChanges(ctx context.Context, s driver.ChangeSetup) (driver.ChangeCheck, error) {
	check := driver.ChangeCheck{Findings: []driver.ChangeFinding{}, Tables: []driver.ChangeTable{}}
	if err := checkSetup(s); err != nil {
		return check, err
	}
	server, err := b.Identity(ctx)
	if err != nil {
		return check, err
	}
	f := findings{role: b.conn.Username}
	scylla := server.Product == "ScyllaDB"
	if f.add(scylla, findVersion, server.Product+" "+server.Version); !scylla {
		f.want("ScyllaDB, whose change logs are tables", "point the client at a ScyllaDB cluster; the change log of Apache Cassandra cannot be read over CQL")
		check.Findings = f.list
		return check, nil
	}
	f.level(b.level())
	if len(s.Tables) == 0 {
		check.Findings = f.list
		check.Tables, err = b.capturable(ctx)
		return check, err
	}
	for i, name := range s.Tables {
		f.table = name
		if slices.Contains(s.Tables[:i], name) {
			f.add(false, findTable, "named twice")
			f.want("each table once", "name it once")
			continue
		}
		meta, err := b.tableMeta(ctx, name.Schema, name.Table)
		if athena.CodeOf(err) == athena.CodeNotFound {
			f.add(false, findTable, "none: it does not exist")
			f.want("a table", "name another table, or create it")
			continue
		}
		if err != nil {
			return check, err
		}
		check.Tables = append(check.Tables, describe(name, meta))
		if !f.shape(meta) {
			continue
		}
		if err := b.checkLog(ctx, &f, meta); err != nil {
			return check, err
		}
	}
	check.Findings = f.list
	return check, nil
}

// findings collects what is found, of one table after the other.
type findings struct {
	role  string
	table driver.TableName // the zero name for the cluster
	list  []driver.ChangeFinding
}

// add adds what was found; it is an error unless it is as it must be.
func (f *findings) add(ok bool, name, found string) {
	level := levelError
	if ok {
		level = levelOK
	}
	table := ""
	if f.table != (driver.TableName{}) {
		table = f.table.String()
	}
	f.list = append(f.list, driver.ChangeFinding{Name: name, Level: level, Table: table, Found: found})
}

// want says of what was added last how it must be, and what mends it.
func (f *findings) want(want, mend string) {
	last := &f.list[len(f.list)-1]
	last.Want, last.Mend = want, mend
}

func (f *findings) warn(name, found, want, mend string) {
	f.add(true, name, found)
	f.list[len(f.list)-1].Level = levelWarning
	f.want(want, mend)
}

// alter is the statement that sets the table's option cdc.
func (f *findings) alter(options ...string) string {
	return fmt.Sprintf("ALTER TABLE %s.%s WITH cdc = {%s}", quoteName(f.table.Schema), quoteName(f.table.Table), strings.Join(options, ", "))
}

// with is alter with the options that the table has, but for one.
func (f *findings) with(now map[string]string, name, value string) string {
	options := maps.Clone(now)
	options[name] = value
	var texts []string
	for _, k := range slices.Sorted(maps.Keys(options)) {
		texts = append(texts, "'"+k+"': '"+options[k]+"'")
	}
	return f.alter(texts...)
}

// level looks at the consistency of the connection.
func (f *findings) level(l gocql.Consistency) {
	want, mend := "LOCAL_QUORUM, QUORUM or ALL", "set connection.consistency of the client, or leave it out for LOCAL_QUORUM"
	switch l {
	case gocql.LocalQuorum, gocql.Quorum, gocql.All:
		f.add(true, findLevel, l.String())
	case gocql.Two, gocql.Three:
		most := map[gocql.Consistency]int{gocql.Two: 4, gocql.Three: 6}
		f.warn(findLevel, fmt.Sprintf("%s, which sees what was written with QUORUM where there are %d replicas or less", l, most[l]), want, mend)
	default:
		f.add(false, findLevel, fmt.Sprintf("%s, with which logs are not read: it does not see all that was written with QUORUM, or is for writes alone", l))
		f.want(want, mend)
	}
}

// level is the consistency of the connection. Logs are read with it, and so is what
// is read of tables beside them.
func (b *Backend) level() gocql.Consistency {
	l := gocql.LocalQuorum
	if b.conn.Consistency != "" {
		_ = l.UnmarshalText([]byte(b.conn.Consistency)) // Open has refused what is none
	}
	return l
}

// checkLevel fails if logs must not be read with the connection's consistency.
func (b *Backend) checkLevel() error {
	var f findings
	f.level(b.level())
	if found := f.list[0]; found.Level == levelError {
		return athena.Errorf(athena.CodeInvalidRequest, "the client's connection.consistency is %s; it must be %s: %s", found.Found, found.Want, found.Mend)
	}
	return nil
}

// shape looks at what the table is. It reports whether it can have a log that can
// be read.
func (f *findings) shape(meta *tableMeta) bool {
	before := len(f.list)
	switch {
	case meta.view:
		f.add(false, findTable, "a materialized view")
		f.want("the table that it is made of", "name the view's table, or leave it out")
	case internal(meta.keyspace):
		f.add(false, findTable, "one of the cluster's own")
		f.want("a table of an application", "leave it out")
	case isLog(meta.name, meta.columns):
		f.add(false, findTable, "the change log of another table")
		f.want("the table whose changes it holds", "name "+strings.TrimSuffix(meta.name, logSuffix)+", or leave it out")
	case meta.counter:
		f.add(false, findTable, "a table of counters, which has no change log")
		f.want("a table without counters", "leave it out")
	default:
		f.add(true, findTable, "a table")
	}
	if f.list[before].Level != levelOK {
		return false
	}
	if !lowerName.MatchString(meta.keyspace) || slices.Contains(reserved, meta.keyspace) || !lowerName.MatchString(meta.name) {
		f.add(false, findNames, fmt.Sprintf("%s.%s, which needs quotes, and the library that reads logs writes none", quoteName(meta.keyspace), quoteName(meta.name)))
		f.want("names of lower-case letters, digits and underscores that are no words of CQL", "leave it out, or move its rows into a table of another name")
	}
	tuple := slices.ContainsFunc(meta.columns, func(c tableColumn) bool { return c.typ.Type() == gocql.TypeTuple })
	for _, c := range meta.columns {
		if tuple && wronglyUnquoted(c.name) {
			f.add(false, findNames, fmt.Sprintf("the column %s, which needs quotes, and the library that reads logs writes none in a table with tuples", quoteName(c.name)))
			f.want("names of lower-case letters, digits and underscores that are no words of CQL", "rename the column, or leave the table out")
		}
		if problem := unreadable(c); problem != "" {
			f.add(false, findTypes, "not readable: "+problem)
			f.want("types that the library that reads logs can read", "leave the table out, or give the column another type")
		}
	}
	return len(f.list) == before+1
}

// isLog reports whether a table is the log of another.
func isLog(name string, columns []tableColumn) bool {
	return strings.HasSuffix(name, logSuffix) &&
		slices.ContainsFunc(columns, func(c tableColumn) bool { return c.name == columnStream })
}

// reserved are the words of CQL that name nothing without quotes.
var reserved = strings.Fields(`add allow alter and apply asc authorize batch begin by columnfamily create delete desc
	describe drop entries execute from full grant if in index infinity insert into is keyspace limit materialized modify
	nan norecursive not null of on or order primary rename replace revoke schema select set table to token truncate
	unlogged update use using view where with`)

var (
	lowerName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	plainWord = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
)

// wronglyUnquoted reports whether scylla-cdc-go writes a column's name without
// the quotes that it needs.
func wronglyUnquoted(name string) bool {
	return plainWord.MatchString(name) && (strings.ToLower(name) != name || slices.Contains(reserved, name))
}

// unreadable says what scylla-cdc-go cannot read of a column. It makes Go maps of
// CQL's, and with keys that Go does not compare it ends the process; of types that
// gocql does not know it reads the same page again and again.
func unreadable(c tableColumn) string {
	var problem string
	var look func(t gocql.TypeInfo)
	look = func(t gocql.TypeInfo) {
		switch t := t.(type) {
		case gocql.CollectionType:
			if t.Key != nil {
				switch t.Key.Type() {
				case gocql.TypeBlob, gocql.TypeList, gocql.TypeSet, gocql.TypeMap, gocql.TypeTuple, gocql.TypeUDT, gocql.TypeCustom:
					problem = fmt.Sprintf("the column %s holds maps whose keys are of the type %s, which the library that reads logs cannot have as keys", quoteName(c.name), typeName(t.Key))
				}
				look(t.Key)
			}
			look(t.Elem)
		case gocql.TupleTypeInfo:
			for _, e := range t.Elems {
				look(e)
			}
		case gocql.UDTTypeInfo:
			for _, e := range t.Elements {
				look(e.Type)
			}
		case gocql.VectorType:
			look(t.SubType)
		default:
			if t.Type() == gocql.TypeCustom {
				problem = fmt.Sprintf("the column %s is of the type %s, which is not known", quoteName(c.name), c.text)
			}
		}
	}
	look(c.typ)
	return problem
}

func describe(name driver.TableName, meta *tableMeta) driver.ChangeTable {
	t := driver.ChangeTable{Table: name, Identity: "primary_key", Key: []string{}, Rows: -1}
	for _, c := range meta.columns {
		if c.key() {
			t.Key = append(t.Key, c.name)
		}
	}
	return t
}

// checkLog looks at the log of a table that can have one.
func (b *Backend) checkLog(ctx context.Context, f *findings, meta *tableMeta) error {
	o, err := meta.logOptions()
	if err != nil {
		return err
	}
	if !o.enabled {
		f.add(false, findOption, "off")
		f.want("enabled", f.alter("'enabled': true"))
		return nil
	}
	f.add(true, findOption, "enabled")
	f.options(meta, o)
	if readable, err := b.checkReading(ctx, f, meta); err != nil || !readable {
		return err
	}
	return b.checkStreams(ctx, f)
}

// options are about what the log says and for how long.
func (f *findings) options(meta *tableMeta, o cdcOptions) {
	switch {
	case o.ttl == 0:
		f.add(true, findTTL, "0: the log keeps its rows for ever, and somebody has to remove them")
	case o.ttl < shortLogTTL:
		f.warn(findTTL, fmt.Sprintf("%s: what a worker that is away for longer has not read is lost", o.ttl), "an hour or more", f.with(meta.cdc, "ttl", "86400"))
	default:
		f.add(true, findTTL, fmt.Sprintf("%s: the longest that a capture may be away", o.ttl))
	}
	parts := slices.ContainsFunc(meta.columns, tableColumn.multiCell)
	switch {
	case o.keysOnly && !o.postimage:
		f.warn(findDelta, "keys: inserts and updates say only which row it was", "full, or postimage: true", f.with(meta.cdc, "delta", "full"))
	case o.keysOnly:
		f.add(true, findDelta, "keys: what was written is told by the image after it")
	default:
		f.add(true, findDelta, "full")
	}
	if o.preimage == "false" {
		f.add(true, findPreimage, "off: changes have no row before them")
	} else {
		f.add(true, findPreimage, o.preimage)
	}
	switch {
	case o.postimage:
		f.add(true, findPostimage, "on: changes have the whole row")
	case parts:
		f.warn(findPostimage, "off: what is done to a part of a collection comes as a delta, which a pipeline cannot put into a row", "on, if pipelines copy the columns that are not frozen", f.with(meta.cdc, "postimage", "true"))
	default:
		f.add(true, findPostimage, "off: changes have the columns that were written")
	}
	if meta.ttl > 0 {
		f.warn(findExpiry, strconv.Itoa(meta.ttl)+" s: what expires is in no log, and stays where changes are copied to", "0", "")
	}
}

// checkReading reads a row of the log as scylla-cdc-go asks for it, and one of the
// table, as the snapshot does.
func (b *Backend) checkReading(ctx context.Context, f *findings, meta *tableMeta) (readable bool, err error) {
	readable = true
	for _, table := range []string{meta.name + logSuffix, meta.name} {
		err := b.try(ctx, fmt.Sprintf("SELECT * FROM %s.%s LIMIT 1", quoteName(meta.keyspace), quoteName(table)))
		switch {
		case err == nil:
		case isCode(err, gocql.ErrCodeUnauthorized):
			readable = false
			f.add(false, findPrivileges, fmt.Sprintf("not enough: the role %q may not read %s.%s", f.role, meta.keyspace, table))
			f.want("SELECT on the table and on its log", fmt.Sprintf("GRANT SELECT ON %s.%s TO %s", quoteName(meta.keyspace), quoteName(table), quoteName(f.role)))
		case isCode(err, gocql.ErrCodeInvalid) && table != meta.name:
			readable = false
			f.add(false, findOption, "enabled, but its log cannot be read: "+b.Classify(err).Message)
			f.want("a log that can be read", "switch the option off and on again: "+f.alter("'enabled': false")+"; "+f.alter("'enabled': true"))
		default:
			return false, err
		}
	}
	if readable {
		f.add(true, findPrivileges, "the table and its log can be read")
	}
	return readable, nil
}

func (b *Backend) try(ctx context.Context, cql string) error {
	return b.session.Query(cql).WithContext(ctx).Idempotent(true).Iter().Close()
}

func isCode(err error, code int) bool {
	var refused serverError
	return errors.As(err, &refused) && refused.GetCode() == code
}

// checkStreams looks for the generation of streams that is written to now.
func (b *Backend) checkStreams(ctx context.Context, f *findings) error {
	tablets, err := b.captureLayout(ctx, f.table)
	var refused *athena.Error
	switch {
	case errors.As(err, &refused):
		f.add(false, findLayout, "not known: initial_tablets of its keyspace is null in system_schema.scylla_keyspaces")
		f.want("a keyspace of vnodes without a row there, or one of tablets with a number", "move the table into a keyspace without storage and consistency options")
		return nil
	case isCode(err, gocql.ErrCodeInvalid) && strings.Contains(err.Error(), "cdc_timestamps"):
		f.add(false, findLayout, "tablets, and this version has no change logs in such keyspaces")
		f.want("ScyllaDB 2025.4 or newer, or a keyspace of vnodes", "upgrade the cluster, or move the table into a keyspace that is created with tablets = {'enabled': false}")
		return nil
	case err != nil:
		return err
	}
	layout := "vnodes"
	if tablets {
		layout = "tablets"
	}
	f.add(true, findLayout, layout)
	g := generations{b, tablets, f.table}
	begins, err := g.begins(ctx)
	switch {
	case isCode(err, gocql.ErrCodeUnauthorized):
		f.add(false, findPrivileges, fmt.Sprintf("not enough: the role %q may not read the tables that tell of streams", f.role))
		f.want("SELECT on them", f.grantStreams(tablets))
		return nil
	case isCode(err, gocql.ErrCodeInvalid) && tablets:
		f.add(false, findLayout, "tablets, and this version has no change logs in such keyspaces")
		f.want("ScyllaDB 2025.4 or newer, or a keyspace of vnodes", "upgrade the cluster, or move the table into a keyspace that is created with tablets = {'enabled': false}")
		return nil
	case err != nil:
		return err
	}
	now := time.Now()
	n, _ := slices.BinarySearchFunc(begins, now, time.Time.Compare)
	if n == 0 {
		found := "missing: nothing is told of streams"
		if len(begins) > 0 {
			found = "not there yet: the first one begins at " + begins[0].UTC().Format(time.RFC3339)
		}
		f.add(false, findGeneration, found)
		f.want("a generation that has begun", "wait a minute or two after the cluster's first start; if it stays so, nodetool checkAndRepairCdcStreams")
		return nil
	}
	at := begins[n-1]
	streams, err := g.streams(ctx, at)
	switch {
	case isCode(err, gocql.ErrCodeUnauthorized):
		f.add(false, findPrivileges, fmt.Sprintf("not enough: the role %q may not read the tables that tell of streams", f.role))
		f.want("SELECT on them", f.grantStreams(tablets))
		return nil
	case err != nil:
		return err
	}
	f.add(len(streams) > 0, findGeneration, fmt.Sprintf("%d streams since %s", len(streams), at.UTC().Format(time.RFC3339)))
	if len(streams) == 0 {
		f.want("streams", "nodetool checkAndRepairCdcStreams")
	}
	return nil
}

func (f *findings) grantStreams(tablets bool) string {
	tables := []string{"system_distributed.cdc_generation_timestamps", "system_distributed.cdc_streams_descriptions_v2"}
	if tablets {
		tables = []string{"system.cdc_timestamps", "system.cdc_streams"}
	}
	for i, t := range tables {
		tables[i] = "GRANT SELECT ON " + t + " TO " + quoteName(f.role)
	}
	return strings.Join(tables, "; ")
}

// capturable describes all tables that have a log or could have one.
func (b *Backend) capturable(ctx context.Context) ([]driver.ChangeTable, error) {
	tables, err := b.Tables(ctx, "")
	if err != nil {
		return nil, err
	}
	list := []driver.ChangeTable{}
	for _, t := range tables {
		if t.Kind != "table" {
			continue
		}
		meta, err := b.tableMeta(ctx, t.Schema, t.Name)
		if athena.CodeOf(err) == athena.CodeNotFound { // it was dropped meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		f := findings{table: driver.TableName{Schema: t.Schema, Table: t.Name}}
		if f.shape(meta) {
			list = append(list, describe(f.table, meta))
		}
	}
	return list, nil
}
