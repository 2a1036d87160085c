package scylla

import (
	"encoding/binary"
	"slices"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// A floor is how far one table's log has been read, of all its streams. It is
// used by one goroutine.
//
// The streams of a log are read in groups, each on its own, and belong to a
// generation: when it ends at a time that is known before, others take their
// place. All of a generation is read before anything of the next one. So nothing
// is missing up to the group that is furthest behind, as long as that is not
// beyond where the next generation begins, nor beyond where it could begin
// without being known yet.
type floor struct {
	table  driver.TableName
	begin  ticks // where reading began in this generation
	groups []*group
	of     map[string]*group // by stream
	// next is where the generation that follows begins; 0 is none that is known.
	// All that begin by looked are known.
	next, looked ticks
}

// A group of streams is read together.
type group struct {
	streams []string
	read    ticks // everything before it has been
	still   int   // seconds since there was something new of it
}

// start begins a generation.
func (f *floor) start(begin ticks, groups [][]string) {
	f.begin, f.next, f.groups, f.of = begin, 0, nil, map[string]*group{}
	for _, streams := range groups {
		g := &group{streams: streams, read: begin}
		f.groups = append(f.groups, g)
		for _, id := range streams {
			f.of[id] = g
		}
	}
}

// pass notes that the group of a stream is read up to a time. It reports whether
// the stream is one of this generation.
func (f *floor) pass(stream string, at ticks) bool {
	g := f.of[stream]
	if g == nil {
		return false
	}
	if at > g.read {
		g.read, g.still = at, 0
	}
	return true
}

// stir notes that there is news of a stream's group.
func (f *floor) stir(stream string) {
	if g := f.of[stream]; g != nil {
		g.still = 0
	}
}

// look notes where generations begin, among them all that begin by a time.
func (f *floor) look(begins []ticks, by ticks) {
	f.looked = max(f.looked, by)
	f.next = 0
	for _, b := range begins {
		if b > f.begin && len(f.groups) > 0 && (f.next == 0 || b < f.next) {
			f.next = b
		}
	}
}

// at is the time before which nothing is missing.
func (f *floor) at() ticks {
	if len(f.groups) == 0 {
		return f.begin
	}
	at := f.looked
	for _, g := range f.groups {
		at = min(at, g.read)
	}
	if f.next != 0 {
		at = min(at, f.next)
	}
	return max(at, f.begin)
}

// vnodeGroups parts streams as scylla-cdc-go does where a generation is one of the
// whole cluster: those of a vnode are read together.
func vnodeGroups(streams [][]byte) (groups [][]string) {
	of := map[uint64]int{}
	for _, id := range streams {
		low := lowWord(id)
		vnode := low >> 4 & (1<<22 - 1)
		i, known := of[vnode]
		if low&15 == 1 && known {
			groups[i] = append(groups[i], string(id))
			continue
		}
		if low&15 == 1 {
			of[vnode] = len(groups)
		}
		groups = append(groups, []string{string(id)})
	}
	return groups
}

// tabletGroups has each stream by itself.
func tabletGroups(streams [][]byte) (groups [][]string) {
	for _, id := range streams {
		groups = append(groups, []string{string(id)})
	}
	return groups
}

// lowWord is the second half of a stream's id: 4 bits of version, 22 of the
// vnode's index, 38 at random.
func lowWord(id []byte) uint64 {
	if len(id) != streamBytes {
		return 0
	}
	return binary.BigEndian.Uint64(id[8:])
}

// slowest are the groups that are furthest behind, of all floors.
func slowest(floors []*floor, most int) (list []driver.OneStreamLag) {
	type entry struct {
		table driver.TableName
		group *group
	}
	var all []entry
	for _, f := range floors {
		for _, g := range f.groups {
			all = append(all, entry{f.table, g})
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int { return int(a.group.read - b.group.read) })
	for _, e := range all[:min(most, len(all))] {
		list = append(list, driver.OneStreamLag{Table: e.table, Stream: hexText(e.group.streams[0]), Complete: e.group.read.time()})
	}
	return list
}

func hexText(id string) string { return string(appendHex(nil, []byte(id))) }
