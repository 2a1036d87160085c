package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// The levels of findings.
const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "error"
)

// The names of findings that are not those of a server's setting.
const (
	findVersion     = "server_version"
	findStandby     = "standby"
	findPrivileges  = "privileges"
	findConnection  = "replication_connection"
	findPublication = "publication"
	findSlot        = "slot"
	findTable       = "table"
	findPartitions  = "partitions"
	findIdentity    = "identity"
	findSecurity    = "row_security"
)

const (
	oldestVersion = 140000
	// standbyVersion can decode on a standby.
	standbyVersion = 160000
	// smallKeep, in MB, is less log than is written while a worker is away for
	// some minutes.
	smallKeep = 1024
)

// serverFacts is what the checks, and the steps themselves, go by.
type serverFacts struct {
	version     int // such as 150004
	text        string
	standby     bool
	database    string
	user        string
	superuser   bool
	replication bool // may open replication connections
	create      bool // may create in the database
	slots       int  // that exist, of all databases
	senders     int  // that run
	settings    map[string]setting
}

type setting struct {
	number int    // in the server's own unit
	text   string // with its unit
}

func serverOf(ctx context.Context, query queryFunc) (f serverFacts, err error) {
	var names, values, texts []string
	_, err = query(ctx, `
		SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
		       current_database(), current_user, r.rolsuper,
		       r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(g.oid, 'MEMBER')),
		       has_database_privilege(current_database(), 'CREATE'),
		       (SELECT count(*) FROM pg_catalog.pg_replication_slots)::int, (SELECT count(*) FROM pg_catalog.pg_stat_replication)::int,
		       s.names, s.values, s.texts
		FROM pg_catalog.pg_roles r, (
			SELECT array_agg(name::text) AS names, array_agg(setting::text) AS values,
			       array_agg(current_setting(name)) AS texts
			FROM pg_catalog.pg_settings
			WHERE name IN ('wal_level', 'max_replication_slots', 'max_wal_senders', 'max_slot_wal_keep_size', 'wal_keep_size',
			               'logical_decoding_work_mem', 'idle_replication_slot_timeout', 'wal_sender_timeout', 'synchronous_standby_names', 'hot_standby_feedback')) s
		WHERE r.rolname = current_user`, nil,
		func(rows pgx.Rows) error {
			return rows.Scan(&f.version, &f.text, &f.standby, &f.database, &f.user, &f.superuser, &f.replication, &f.create,
				&f.slots, &f.senders, &names, &values, &texts)
		})
	f.settings = map[string]setting{}
	for i, name := range names {
		n, _ := strconv.Atoi(values[i]) // 0 for a text
		f.settings[name] = setting{n, texts[i]}
	}
	return f, err
}

// CheckChanges looks at the server, the role, the publication, the slot and each
// table, and opens a replication connection to see that it can be had. Findings
// about a setting bear its name; the others are named by the constants above.
// If no tables are named, all that could be captured are described, and what
// stands in their way is not.
func (b *Backend) CheckChanges(ctx context.Context, s driver.ChangeSetup) (driver.ChangeCheck, error) {
	check := driver.ChangeCheck{Findings: []driver.ChangeFinding{}, Tables: []driver.ChangeTable{}}
	server, err := serverOf(ctx, b.catalog)
	if err != nil {
		return check, err
	}
	check.Findings = append(server.findings(s), b.tryConnection(ctx, s))
	if err := checkNames(s); err != nil {
		return check, err
	}
	x, err := slotOf(ctx, b.catalog, server.version, s.Slot)
	if err != nil {
		return check, err
	}
	check.Findings = append(check.Findings, server.roomFindings(x)...)
	p, err := publicationOf(ctx, b.catalog, server.version, s.Publication, s.Client)
	if err != nil {
		return check, err
	}
	check.Findings = append(check.Findings, slotFinding(s, server, x))
	check.Findings = append(check.Findings, publicationFindings(s, server, p)...)
	tables, err := tablesFor(ctx, b.catalog, s.Tables)
	if err != nil {
		return check, err
	}
	for _, t := range tables {
		if t.captures() {
			check.Tables = append(check.Tables, t.describe())
		}
	}
	if len(s.Tables) == 0 {
		return check, nil
	}
	check.Findings = append(check.Findings, tableFindings(s, tables, p)...)
	for _, t := range tables {
		if !t.captures() {
			continue
		}
		if !t.selectable {
			if t.selectable, err = b.mayReadColumns(ctx, server, p, t.name); err != nil {
				return check, err
			}
		}
		check.Findings = append(check.Findings, t.privileges(server, p)...)
	}
	return check, nil
}

// mayReadColumns reports whether the role may read all columns that the
// publication sends, where it may not read the table.
func (b *Backend) mayReadColumns(ctx context.Context, server serverFacts, p publication, name driver.TableName) (may bool, err error) {
	t, err := publishedTable(ctx, b.catalog, server.version, []string{p.name}, name)
	if err != nil || t == nil {
		return false, err
	}
	columns := make([]string, len(t.columns))
	for i, c := range t.columns {
		columns[i] = c.name
	}
	_, err = b.catalog(ctx, `SELECT has_schema_privilege(c.relnamespace, 'USAGE')
			AND (SELECT bool_and(has_column_privilege(c.oid, name, 'SELECT')) FROM unnest($2::text[]) AS name)
		FROM pg_catalog.pg_class c WHERE c.oid = $1`, []any{t.oid, columns}, func(rows pgx.Rows) error { return rows.Scan(&may) })
	return may, err
}

// findings are about the server and the role.
func (f *serverFacts) findings(s driver.ChangeSetup) (list []driver.ChangeFinding) {
	add := func(name, level, found, want, mend string) {
		list = append(list, driver.ChangeFinding{Name: name, Level: level, Found: found, Want: want, Mend: mend})
	}
	if f.version < oldestVersion {
		add(findVersion, levelError, "PostgreSQL "+f.text, "PostgreSQL 14 or newer", "upgrade the server")
	} else {
		add(findVersion, levelOK, "PostgreSQL "+f.text, "", "")
	}
	switch {
	case f.standby && f.version < standbyVersion:
		add(findStandby, levelError, "the database is a standby", "a primary, or PostgreSQL 16", "connect the client to the primary")
	case f.standby:
		add(findStandby, levelWarning, "the database is a standby: the publication is made at its primary, and the capture begins anew when it is promoted", "", "")
		if f.settings["hot_standby_feedback"].text != "on" {
			add("hot_standby_feedback", levelWarning, "off: the primary may remove rows of the catalog that the slot needs, which is lost then", "on",
				"ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf()")
		}
	}
	if level := f.settings["wal_level"].text; level != "logical" {
		add("wal_level", levelError, level, "logical", "ALTER SYSTEM SET wal_level = logical; then restart the server")
	} else {
		add("wal_level", levelOK, level, "", "")
	}
	if f.superuser || f.replication {
		add(findPrivileges, levelOK, fmt.Sprintf("role %q may replicate", f.user), "", "")
	} else {
		add(findPrivileges, levelError, fmt.Sprintf("role %q may not replicate", f.user), "the attribute REPLICATION",
			"ALTER ROLE "+quoteName(f.user)+" REPLICATION (on Amazon RDS: GRANT rds_replication TO "+quoteName(f.user)+")")
	}

	const kept, idle, alive = "max_slot_wal_keep_size", "idle_replication_slot_timeout", "wal_sender_timeout"
	set := func(name, value string) string {
		return "ALTER SYSTEM SET " + name + " = '" + value + "'; SELECT pg_reload_conf()"
	}
	switch keep := f.settings[kept]; {
	case keep.number < 0:
		add(kept, levelWarning, keep.text+": a slot that nobody reads keeps log until the disk is full", "a bound that the disk can hold", set(kept, "50GB"))
	case keep.number < smallKeep:
		add(kept, levelWarning, keep.text+": a worker that is away for a while finds its slot lost", "1GB or more", set(kept, "50GB"))
	default:
		add(kept, levelOK, keep.text, "", "")
	}
	if timeout := f.settings[idle]; timeout.number > 0 {
		add(idle, levelWarning, timeout.text+": a slot that is not read for so long is lost", "0, or longer than a worker is ever away", set(idle, "0"))
	}
	if timeout := f.settings[alive]; timeout.number == 0 {
		add(alive, levelWarning, "0: the server does not notice that a worker is gone, and keeps its slot from the next one", "1min", set(alive, "1min"))
	} else {
		add(alive, levelOK, timeout.text, "", "")
	}
	if names := f.settings["synchronous_standby_names"].text; strings.Contains(names, "*") || strings.Contains(names, replicationName(s.Client)) {
		add("synchronous_standby_names", levelWarning, names+": commits may wait until this capture has stored them", "the names of standbys alone",
			"ALTER SYSTEM SET synchronous_standby_names = …, with the standbys' own names; SELECT pg_reload_conf()")
	}
	for _, name := range []string{"wal_keep_size", "logical_decoding_work_mem"} {
		add(name, levelOK, f.settings[name].text, "", "")
	}
	return list
}

// roomFindings are about what one more slot and one more connection need.
func (f *serverFacts) roomFindings(x slot) []driver.ChangeFinding {
	room := func(setting, things string, used, needed int) driver.ChangeFinding {
		most := f.settings[setting].number
		found := driver.ChangeFinding{Name: setting, Level: levelOK, Found: fmt.Sprintf("%d of %d %s are in use", used, most, things)}
		if used+needed > most {
			found.Level, found.Want = levelError, "one that is free"
			found.Mend = fmt.Sprintf("ALTER SYSTEM SET %s = %d; then restart the server", setting, most+max(4, needed))
		}
		return found
	}
	slots, senders := 1, 1
	if x.there {
		slots = 0
	}
	if x.pid != 0 {
		senders = 0
	}
	return []driver.ChangeFinding{
		room("max_replication_slots", "slots", f.slots, slots),
		room("max_wal_senders", "senders", f.senders, senders),
	}
}

// tryConnection opens a replication connection, which pg_hba.conf may forbid
// where others are allowed.
func (b *Backend) tryConnection(ctx context.Context, s driver.ChangeSetup) driver.ChangeFinding {
	found := driver.ChangeFinding{Name: findConnection, Level: levelOK, Found: "it can be had"}
	log, err := b.connectReplication(ctx, s.Client)
	if err == nil {
		defer closeReplication(log)
		_, err = b.source(ctx, log.pg)
	}
	if err != nil {
		found.Level, found.Found = levelError, cmp.Or(b.Classify(err).Message, "it cannot be had")
		found.Want = "a connection with replication=database"
		found.Mend = "allow it in pg_hba.conf, as for the database's other connections, and connect to the server itself and not to a pooler"
	}
	return found
}

func slotFinding(s driver.ChangeSetup, server serverFacts, x slot) driver.ChangeFinding {
	found := driver.ChangeFinding{Name: findSlot, Level: levelOK, Found: fmt.Sprintf("there is no slot %q yet", x.name)}
	if !x.there {
		return found
	}
	found.Found = fmt.Sprintf("the slot %q is there, of the plugin %s, and not in use", x.name, cmp.Or(x.plugin, "none"))
	if x.pid != 0 {
		found.Found = fmt.Sprintf("the slot %q is there, and in use by the session %d of %q", x.name, x.pid, x.application)
		if x.application == replicationName(s.Client) { // a capture that runs is checked
			return found
		}
	}
	var refusal *athena.Error
	if err := x.refuse(s, server.database); errors.As(err, &refusal) {
		found.Level, found.Found = levelError, refusal.Message
		found.Mend = "SELECT pg_drop_replication_slot(" + quoteLiteral(x.name) + ")"
	}
	return found
}

// publicationFindings are about the publication itself.
func publicationFindings(s driver.ChangeSetup, server serverFacts, p publication) (list []driver.ChangeFinding) {
	add := func(level, table, found, want, mend string) {
		list = append(list, driver.ChangeFinding{Name: findPublication, Level: level, Table: table, Found: found, Want: want, Mend: mend})
	}
	name := quoteName(p.name)
	switch {
	case !p.there && server.standby:
		inserts := publication{name: p.name + insertsSuffix}
		add(levelError, "", fmt.Sprintf("there is no publication %q, and a standby cannot make one", p.name), "one that is made at the primary",
			strings.Join(append(p.become(s.Client, allActions, s.Tables).in, inserts.become(s.Client, "insert", nil).in...), "; "))
	case !p.there && !server.create:
		list = append(list, driver.ChangeFinding{Name: findPrivileges, Level: levelError, Found: fmt.Sprintf("role %q may not create a publication in database %q", server.user, server.database),
			Want: "CREATE on the database", Mend: "GRANT CREATE ON DATABASE " + quoteName(server.database) + " TO " + quoteName(server.user)})
	case !p.there:
		add(levelOK, "", fmt.Sprintf("there is no publication %q yet", p.name), "", "")
	case p.ours:
		add(levelOK, "", fmt.Sprintf("the publication %q is ours, and has %d tables", p.name, len(p.sent)), "", "")
	case !s.TakeOver:
		add(levelError, "", fmt.Sprintf("the publication %q is there, and was not made for client %q", p.name, s.Client), "a name that is free, or one that is taken over",
			"enable the capture with take_over, give it another publication, or drop this one: DROP PUBLICATION "+name)
	default:
		add(levelOK, "", fmt.Sprintf("the publication %q is taken over as it is; it publishes %s of %d tables", p.name, cmp.Or(p.actions, "nothing"), len(p.sent)), "", "")
		if p.actions != allActions {
			add(levelWarning, "", fmt.Sprintf("the publication %q publishes %s only", p.name, cmp.Or(p.actions, "nothing")), allActions,
				"ALTER PUBLICATION "+name+" SET (publish = '"+allActions+"')")
		}
		if p.everyone {
			add(levelWarning, "", fmt.Sprintf("the publication %q is FOR ALL TABLES: UPDATE and DELETE fail in the application on each table without an identity", p.name), "the tables that are captured, by name", "")
		}
		for _, t := range s.Tables {
			if !slices.Contains(p.sent, t) {
				add(levelError, t.String(), fmt.Sprintf("the publication %q does not publish %s under its own name", p.name, t), "every table that is captured",
					"ALTER PUBLICATION "+name+" ADD TABLE "+quoteTable(t)+"; if it is partitioned, also ALTER PUBLICATION "+name+" SET (publish_via_partition_root = true)")
			}
		}
		more := 0
		for _, t := range p.sent {
			if len(s.Tables) > 0 && !slices.Contains(s.Tables, t) {
				more++
			}
		}
		if more > 0 {
			add(levelWarning, "", fmt.Sprintf("the publication %q publishes %d more tables than are named, and their changes are captured too", p.name, more), "", "")
		}
	}
	for i, t := range p.narrowed {
		add(levelWarning, t.String(), fmt.Sprintf("the publication %q publishes only %s", p.name, p.narrowing[i]), "", "")
	}
	return list
}

// captures reports whether the table is of a kind that can be captured.
func (t *tableFacts) captures() bool {
	return (t.kind == "r" || t.kind == "p") && t.persistence == "p" && !t.system && t.unlogged == ""
}

func (t *tableFacts) describe() driver.ChangeTable {
	d := driver.ChangeTable{Table: t.name, Identity: t.identity, Key: t.key, Rows: t.rows, Bytes: t.bytes}
	switch {
	case !t.usable():
		d.Identity = "none"
	case t.identity == "none": // its partitions have one each
		d.Identity = "full"
	}
	return d
}

// tableFindings are about the tables that are wanted, as PrepareChanges sees
// them: an error among them refuses the whole.
func tableFindings(s driver.ChangeSetup, tables []tableFacts, p publication) (list []driver.ChangeFinding) {
	wanted := map[uint32]driver.TableName{}
	for _, t := range tables {
		wanted[t.oid] = t.name
	}
	foreign := p.there && !p.ours
	for i, t := range tables {
		add := func(name, level, found, want, mend string) {
			list = append(list, driver.ChangeFinding{Name: name, Level: level, Table: t.name.String(), Found: found, Want: want, Mend: mend})
		}
		if problem := t.unfit(); problem != "" {
			add(findTable, levelError, fmt.Sprintf("%s %s", t.name, problem), "an ordinary or partitioned table whose changes are in the log", "leave it out, or name another table")
			continue
		}
		if slices.ContainsFunc(tables[:i], func(o tableFacts) bool { return o.oid == t.oid }) {
			add(findTable, levelError, fmt.Sprintf("%s is named twice", t.name), "", "name it once")
			continue
		}
		add(findTable, levelOK, kindName(t), "", "")
		for _, a := range t.ancestors {
			if root, both := wanted[a]; both {
				add(findPartitions, levelError, fmt.Sprintf("%s is a partition of %s, which publishes its changes", t.name, root), "the one or the other", "leave out "+t.name.String())
			}
		}
		if t.inherited {
			add(findPartitions, levelWarning, fmt.Sprintf("tables inherit from %s; their rows are not captured with it", t.name), "", "name those tables too")
		}
		list = append(list, t.identityFinding(s, foreign))
	}
	return list
}

// unfit says why the table cannot be captured, whatever is done to it.
func (t *tableFacts) unfit() string {
	switch {
	case t.oid == 0:
		return "does not exist"
	case t.system:
		return "is one of the server's own"
	case t.kind != "r" && t.kind != "p":
		return "is " + kindName(*t)
	case t.persistence == "u":
		return "is unlogged, so that its changes are not in the log"
	case t.persistence == "t":
		return "is temporary"
	case t.unlogged != "":
		return "has the partition " + t.unlogged + ", which is foreign or unlogged, so that its changes are not in the log"
	}
	return ""
}

func kindName(t tableFacts) string {
	switch t.kind {
	case "r":
		return "an ordinary table"
	case "p":
		return fmt.Sprintf("a partitioned table of %d partitions", t.leaves)
	case "v":
		return "a view"
	case "m":
		return "a materialized view"
	case "f":
		return "a foreign table"
	}
	return "no table"
}

func (t *tableFacts) identityFinding(s driver.ChangeSetup, foreign bool) driver.ChangeFinding {
	f := driver.ChangeFinding{Name: findIdentity, Level: levelOK, Table: t.name.String(), Found: t.describe().Identity}
	switch {
	case !t.usable():
		f.Level = levelError
		f.Want = "a primary key, or another replica identity"
		f.Found, f.Mend = t.identityMend()
		if foreign {
			f.Level = levelWarning // it is published as it is; nothing gets worse by us
			f.Found += ": UPDATE and DELETE fail in the application if the publication publishes them"
		} else if s.InsertsOnly {
			f.Level = levelWarning
			f.Found += ": inserts alone are captured"
		} else {
			f.Mend += "; or capture inserts alone, with inserts_only"
		}
	case t.kind == "p" && !t.primary:
		f.Level = levelWarning
		f.Found = fmt.Sprintf("%s has no primary key, which a new partition would get: UPDATE and DELETE fail in the application on a partition that has no identity of its own", t.name)
		f.Want = "a primary key of the partitioned table"
		f.Mend = "ALTER TABLE " + quoteTable(t.name) + " ADD PRIMARY KEY (…)"
	}
	return f
}

// identityMend says what the table, or one of its partitions, lacks, and the
// statement that gives it an identity.
func (t *tableFacts) identityMend() (found, mend string) {
	name := quoteTable(t.name)
	if t.anonymous != "" && t.kind == "p" && t.identity != "none" {
		return fmt.Sprintf("the partition %s of %s has no replica identity", t.anonymous, t.name),
			"ALTER TABLE " + t.anonymous + " REPLICA IDENTITY FULL"
	}
	found = fmt.Sprintf("%s has no replica identity", t.name)
	switch {
	case t.nothing && t.primary:
		return found, "ALTER TABLE " + name + " REPLICA IDENTITY DEFAULT"
	case t.candidate != "" && t.kind == "r":
		return found, "ALTER TABLE " + name + " REPLICA IDENTITY USING INDEX " + t.candidate
	case t.kind == "p":
		return found, "ALTER TABLE " + name + " ADD PRIMARY KEY (…)"
	}
	return found, "ALTER TABLE " + name + " ADD PRIMARY KEY (…), or ALTER TABLE " + name + " REPLICA IDENTITY FULL"
}

// privileges are about what the role may do with the table.
func (t *tableFacts) privileges(server serverFacts, p publication) (list []driver.ChangeFinding) {
	add := func(level, found, want, mend string) {
		list = append(list, driver.ChangeFinding{Name: findPrivileges, Level: level, Table: t.name.String(), Found: found, Want: want, Mend: mend})
	}
	role := quoteName(server.user)
	if t.secured {
		list = append(list, driver.ChangeFinding{Name: findSecurity, Level: levelError, Table: t.name.String(),
			Found: fmt.Sprintf("row security would hide rows of %s from the snapshot", t.name), Want: "a role that it does not apply to",
			Mend: "ALTER ROLE " + role + " BYPASSRLS"})
	}
	if !t.owned && (!p.there || p.ours && !slices.Contains(p.sent, t.name)) {
		add(levelError, fmt.Sprintf("role %q does not own %s, and only its owner can publish it", server.user, t.name), "membership in the owner's role",
			"GRANT the role that owns "+quoteTable(t.name)+" TO "+role+", or make the publication as its owner and enable the capture with take_over")
	}
	switch {
	case !t.selectable:
		add(levelError, fmt.Sprintf("role %q may not read %s, which the snapshot does", server.user, t.name), "SELECT on the table and USAGE on its schema",
			"GRANT USAGE ON SCHEMA "+quoteName(t.name.Schema)+" TO "+role+"; GRANT SELECT ON "+quoteTable(t.name)+" TO "+role)
	case t.closed != "" && t.kind == "p":
		add(levelError, fmt.Sprintf("role %q may not read %s, a partition of %s, which the snapshot does", server.user, t.closed, t.name), "SELECT on every partition",
			"GRANT SELECT ON "+t.closed+" TO "+role)
	default:
		add(levelOK, fmt.Sprintf("role %q may read %s", server.user, t.name), "", "")
	}
	return list
}
