package scyllatest

import (
	"maps"
	"slices"
	"strings"

	"github.com/datastax/go-cassandra-native-protocol/message"
)

type role struct {
	password     string
	super, login bool
	perms        map[string]bool // "PERMISSION resource"
}

func (c *Cluster) login(name, password string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.roles[name]
	return r != nil && r.login && r.password == password
}

// authorize panics with Unauthorized if the connection's role may not run p. Without
// Password everybody may do everything.
func (c *Cluster) authorize(k *conn, p *plan) {
	if k.admin || c.user == "" {
		return
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.roles[k.user]
	if r != nil && r.super {
		return
	}
	need := func(perm, ks, table string) {
		if c.keyspaces[ks] != nil && c.keyspaces[ks].system && perm == "SELECT" {
			return
		}
		for _, res := range []string{"data/" + ks + "/" + table, "data/" + ks, "data"} {
			if r != nil && r.perms[perm+" "+res] {
				return
			}
		}
		res := "<table " + ks + "." + table + ">"
		switch {
		case ks == "":
			res = "<all keyspaces>"
		case table == "":
			res = "<keyspace " + ks + ">"
		}
		panic(failure{&message.Unauthorized{ErrorMessage: "User " + k.user + " has no " + perm + " permission on " + res + " or any of its parents"}})
	}
	in := func(ks string) string {
		if ks == "" {
			return k.use
		}
		return ks
	}
	switch st := p.st.(type) {
	case *selectStmt:
		need("SELECT", p.t.ks, p.t.name)
	case *insertStmt, *updateStmt, *deleteStmt, *truncateStmt:
		need("MODIFY", p.t.ks, p.t.name)
	case *batchStmt:
		for _, q := range p.batch {
			need("MODIFY", q.t.ks, q.t.name)
		}
	case *keyspaceStmt:
		if st.verb == "CREATE" {
			need("CREATE", "", "")
		} else {
			need(st.verb, st.ks, "")
		}
	case *createTableStmt:
		need("CREATE", in(st.table.ks), "")
	case *alterTableStmt:
		need("ALTER", in(st.table.ks), st.table.name)
	case *dropTableStmt:
		need("DROP", in(st.table.ks), st.table.name)
	case *typeStmt:
		need("CREATE", in(st.name.ks), "")
	case *indexStmt:
		need("ALTER", in(st.table.ks), st.table.name)
	case *viewStmt:
		need("CREATE", in(st.name.ks), "")
	case *roleStmt, *grantStmt:
		panic(failure{&message.Unauthorized{ErrorMessage: "User " + k.user + " does not have sufficient privileges to perform the requested operation"}})
	}
}

var allPermissions = []string{"ALTER", "AUTHORIZE", "CREATE", "DROP", "MODIFY", "SELECT"}

// administer carries out a statement about roles.
func (c *Cluster) administer(k *conn, st statement) message.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	need := func(name string) *role {
		if r := c.roles[name]; r != nil {
			return r
		}
		panic(invalid("%s doesn't exist.", name))
	}
	switch st := st.(type) {
	case *roleStmt:
		switch {
		case st.verb == "DROP":
			if c.roles[st.role] == nil && st.cond {
				return &message.VoidResult{}
			}
			need(st.role)
			delete(c.roles, st.role)
		case c.roles[st.role] != nil:
			if !st.cond {
				panic(invalid("%s already exists", st.role))
			}
		default:
			c.roles[st.role] = &role{password: st.opts["password"].text, login: st.opts["login"].text == "true", super: st.opts["superuser"].text == "true", perms: map[string]bool{}}
		}
	case *grantStmt:
		r := need(st.role)
		perms := []string{st.perm}
		if st.perm == "ALL" {
			perms = allPermissions
		}
		for _, p := range perms {
			if st.verb == "GRANT" {
				r.perms[p+" "+st.resource] = true
			} else {
				delete(r.perms, p+" "+st.resource)
			}
		}
	case *listStmt:
		reply := &rowsReply{}
		for _, n := range []string{"role", "username", "resource", "permission"} {
			reply.columns = append(reply.columns, &message.ColumnMetadata{Keyspace: "system_auth", Table: "permissions", Name: n, Type: textType.wire()})
			reply.types = append(reply.types, textType)
		}
		for _, name := range slices.Sorted(maps.Keys(c.roles)) {
			if st.role != "" && name != st.role {
				continue
			}
			for _, p := range slices.Sorted(maps.Keys(c.roles[name].perms)) {
				perm, res, _ := strings.Cut(p, " ")
				reply.rows = append(reply.rows, [][]byte{[]byte(name), []byte(name), []byte(shownResource(res)), []byte(perm)})
			}
		}
		return reply
	}
	return &message.VoidResult{}
}

func shownResource(res string) string {
	parts := strings.Split(res, "/")
	switch len(parts) {
	case 1:
		return "<all keyspaces>"
	case 2:
		return "<keyspace " + parts[1] + ">"
	}
	return "<table " + parts[1] + "." + parts[2] + ">"
}
