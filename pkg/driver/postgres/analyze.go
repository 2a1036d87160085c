package postgres

import (
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// analysis is what the text of a statement tells.
type analysis struct {
	driver.Analysis
	// empty: there is nothing but white space and comments.
	empty bool
	// session: the statement may change the session beyond its transaction,
	// so that its connection must not serve anybody else.
	session bool
}

// analyze classifies a statement. It errs on the side of Write: a statement is
// a Read only if its first word says so and nothing in it speaks against it.
// What it cannot see, a function that writes, is caught by the server, since
// reads run in a READ ONLY transaction.
func analyze(text string) analysis {
	s := scan(text)
	a := analysis{session: s.session, empty: len(s.words) == 0 && !s.broken}
	a.Effect = driver.Write
	switch {
	case s.broken || a.empty: // the server says what is wrong with it
	case s.several:
		a.refuse("the text holds more than one statement; send them one by one")
	default:
		a.classify(s)
	}
	a.Idempotent = a.Effect == driver.Read
	return a
}

func (a *analysis) refuse(reason string) {
	a.Effect, a.Reason = driver.Refused, reason
}

// scanned is a statement as the classifier sees it: its words in order, where
// everything that is not a word is an empty string.
type scanned struct {
	words   []string
	several bool
	broken  bool
	session bool
	effects bool // calls a function that is known to have effects
}

func scan(text string) (s scanned) {
	l := lexer{src: text}
	depth, bodies, ended := 0, 0, false
	var last token
	for {
		t := l.next()
		if t.kind == tokenEnd {
			return s
		}
		if t.kind == tokenBroken {
			s.broken = true
			return s
		}
		if t.kind == tokenOther {
			switch t.text {
			case "(":
				depth++
				if last.kind == tokenWord || last.kind == tokenQuoted {
					s.call(last.text)
				}
			case ")":
				depth--
			case ";":
				if depth <= 0 && bodies <= 0 {
					ended = true
					last = t
					continue
				}
			}
		}
		if ended {
			s.several = true
			return s
		}
		// A function body in SQL's own syntax holds semicolons: BEGIN ATOMIC
		// … END, with CASE … END inside.
		switch {
		case t.is("atomic") && last.is("begin") && len(s.words) > 1 && s.words[0] == "create":
			bodies++
		case bodies > 0 && t.is("case"):
			bodies++
		case bodies > 0 && t.is("end"):
			bodies--
		case t.is("temp"), t.is("temporary"), (t.kind == tokenWord || t.kind == tokenQuoted) && t.text == "pg_temp":
			s.session = true // a temporary table outlives its transaction
		}
		if t.kind == tokenWord {
			s.words = append(s.words, t.text)
		} else {
			s.words = append(s.words, "")
		}
		last = t
	}
}

// call notes the call of a function that has effects a READ ONLY transaction
// does not prevent, or that changes the session.
func (s *scanned) call(name string) {
	hasPrefix := func(p string) bool { return strings.HasPrefix(name, p) }
	switch {
	case name == "set_config", name == "setseed", hasPrefix("dblink"),
		hasPrefix("pg_advisory_") && !hasPrefix("pg_advisory_xact_"),
		hasPrefix("pg_try_advisory_") && !hasPrefix("pg_try_advisory_xact_"),
		hasPrefix("pg_replication_origin_session_"):
		s.effects, s.session = true, true
	case slices.ContainsFunc(effectful, hasPrefix):
		s.effects = true
	}
}

// effectful are the beginnings of names of built-in functions that act on more
// than their result.
var effectful = []string{
	"nextval", "setval", "lo_", "lowrite", "pg_notify", "pg_advisory_", "pg_try_advisory_",
	"pg_terminate_backend", "pg_cancel_backend", "pg_reload_conf", "pg_rotate_logfile", "pg_promote",
	"pg_switch_wal", "pg_create_", "pg_drop_", "pg_copy_", "pg_logical_", "pg_replication_", "pg_sync_replication_",
	"pg_wal_replay_", "pg_backup_", "pg_start_backup", "pg_stop_backup", "pg_export_snapshot", "pg_log_",
	"pg_stat_reset", "pg_stat_statements_reset", "pg_stat_clear", "pg_stat_force", "pg_import_system_collations",
	"pg_prewarm", "autoprewarm", "brin_", "gin_clean_pending_list", "pg_clear_", "pg_restore_", "pg_file_",
}

func (a *analysis) classify(s scanned) {
	has := func(words ...string) bool {
		return slices.ContainsFunc(s.words, func(w string) bool { return slices.Contains(words, w) })
	}
	// word gives the nth word; what is no word is "".
	word := func(n int) string {
		if n < len(s.words) {
			return s.words[n]
		}
		return ""
	}
	first := 0
	for first < len(s.words)-1 && s.words[first] == "" { // (SELECT …) UNION …
		first++
	}
	switch w := word(first); w {
	case "select", "values", "table", "with":
		if !writes(s) {
			a.Effect = driver.Read
		}
	case "show":
		a.Effect = driver.Read
	case "explain":
		// Only EXPLAIN ANALYZE runs what it explains.
		if !has("analyze", "analyse") || !writes(s) && !has("create", "execute", "refresh") {
			a.Effect = driver.Read
		}

	case "begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release":
		a.refuse("transactions are not controlled by statements; each statement is a transaction of its own")
	case "listen", "unlisten":
		a.refuse("notifications need a session of their own; they cannot be received here")
	case "declare", "fetch", "move", "close":
		a.refuse("cursors need a session of their own; read the rows of the query itself")
	case "copy":
		if has("stdin", "stdout") {
			a.refuse("COPY with STDIN or STDOUT is not possible here; use INSERT or SELECT")
		}
	case "prepare":
		if word(first+1) == "transaction" {
			a.refuse("two-phase commit is not possible here")
		}
		a.session = true
	case "set":
		a.session = true
		if word(first+1) == "transaction" || word(first+1) == "session" && word(first+2) == "characteristics" {
			a.refuse("transactions are not controlled by statements; each statement is a transaction of its own")
		}
	case "reset", "deallocate", "load", "execute", "do", "call":
		a.session = true // of the last two it cannot be told
	case "discard":
		a.session = true
		a.Effect = driver.Outside

	case "vacuum":
		a.Effect = driver.Outside
	case "cluster":
		if !slices.ContainsFunc(s.words[first+1:], func(w string) bool { return w != "" && w != "verbose" }) {
			a.Effect = driver.Outside // all tables
		}
	case "reindex":
		if has("concurrently", "database", "system", "schema") {
			a.Effect = driver.Outside
		}
	case "create", "alter", "drop":
		if outsideTransaction(w, s.words[first+1:]) {
			a.Effect = driver.Outside
		}
	}
}

// writes reports whether a query may change something: by a word that only a
// write has, by a row lock, or by a function.
func writes(s scanned) bool {
	for i, w := range s.words {
		switch w {
		case "insert", "update", "delete", "merge", "truncate", "into":
			return true
		case "for": // FOR SHARE, FOR KEY SHARE, FOR NO KEY UPDATE; FOR UPDATE is caught above
			if i+1 < len(s.words) && slices.Contains([]string{"share", "key", "no"}, s.words[i+1]) {
				return true
			}
		}
	}
	return s.effects
}

// outsideTransaction reports whether a CREATE, ALTER or DROP, given what follows the verb,
// cannot run in a transaction.
func outsideTransaction(verb string, words []string) bool {
	if len(words) > 0 && words[0] == "unique" {
		words = words[1:]
	}
	if len(words) == 0 {
		return false
	}
	switch words[0] {
	case "database":
		return verb != "alter" || slices.Contains(words, "tablespace")
	case "tablespace":
		return verb != "alter"
	case "subscription":
		return true
	case "system":
		return verb == "alter"
	case "index":
		return verb != "alter" && len(words) > 1 && words[1] == "concurrently"
	case "table": // ALTER TABLE … DETACH PARTITION … CONCURRENTLY
		return verb == "alter" && slices.Contains(words, "detach") && slices.Contains(words, "concurrently")
	}
	return false
}
