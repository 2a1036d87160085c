package judge

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
)

// A Token stands for one change that was asked for.
type Token string

// Wrote is the insert or update that gave a row its version.
func Wrote(ver int64) Token { return Token("w" + strconv.FormatInt(ver, 10)) }

// Deleted is the delete of the row with that id.
func Deleted(id int64) Token { return Token("d" + strconv.FormatInt(id, 10)) }

// Dropped is the delete of the row with that version, in a table without a key.
func Dropped(ver int64) Token { return Token("x" + strconv.FormatInt(ver, 10)) }

// Truncated is the truncate of a table. Several of one table share a token.
func Truncated(schema, table string) Token { return Token("t" + schema + "." + table) }

// Said is a message with that content.
func Said(prefix, content string) Token { return Token("m" + prefix + "/" + content) }

// A Ledger holds what was committed, as those who committed it know. The zero
// value is empty. It is safe for concurrent use.
type Ledger struct {
	mu    sync.Mutex
	must  map[Token]int // arrives just so often
	might map[Token]int // arrives at most so often more
}

// Committed says that the changes were committed, and have to arrive.
func (l *Ledger) Committed(tokens ...Token) { l.enter(&l.must, tokens) }

// Perhaps says that the changes may arrive: nobody knows whether they were
// committed, or whether that was before the capture began.
func (l *Ledger) Perhaps(tokens ...Token) { l.enter(&l.might, tokens) }

func (l *Ledger) enter(in *map[Token]int, tokens []Token) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if *in == nil {
		*in = map[Token]int{}
	}
	for _, t := range tokens {
		(*in)[t]++
	}
}

// Len returns how many changes have to arrive.
func (l *Ledger) Len() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.must {
		n += c
	}
	return n
}

// settle compares the ledger with what arrived.
func (l *Ledger) settle(arrived map[Token]int, report func(string, ...any)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lost, twice, ghosts []Token
	for t, n := range l.must {
		if arrived[t] < n {
			lost = append(lost, t)
		}
	}
	for t, n := range arrived {
		switch must, might := l.must[t], l.might[t]; {
		case must+might == 0:
			ghosts = append(ghosts, t)
		case n > must+might:
			twice = append(twice, t)
		}
	}
	for what, tokens := range map[string][]Token{
		"were committed and did not arrive":          lost,
		"arrived more often than they were made":     twice,
		"arrived and were never committed by anyone": ghosts,
	} {
		if len(tokens) > 0 {
			slices.Sort(tokens)
			report("%d changes %s: %s", len(tokens), what, some(tokens))
		}
	}
}

func some(tokens []Token) string {
	if len(tokens) > 10 {
		return fmt.Sprintf("%v and others, the last %s", tokens[:10], tokens[len(tokens)-1])
	}
	return fmt.Sprint(tokens)
}
