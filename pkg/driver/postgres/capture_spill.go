package postgres

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A spool holds the messages of transactions that are not yet committed, each
// transaction's in the order in which they came: in memory up to a budget over
// all of them, beyond it on disk. It is not safe for concurrent use.
//
// Nothing in it outlives the connection: what is not committed is sent again.
type spool struct {
	dir    string
	budget int64 // bytes in memory
	most   int64 // bytes on disk; 0 is no bound

	open   map[uint32]*spooled // by transaction id
	memory int64
	disk   int64
	spills int // how often something went to disk
}

// A spooled transaction. Its file, if it has one, comes before its memory.
type spooled struct {
	xid     uint32
	memory  []byte
	file    *os.File
	size    int64           // of the file
	aborted map[uint32]bool // subtransactions that were rolled back
	// prepared says that its changes are complete and it waits for COMMIT
	// PREPARED; began is then the position of the PREPARE.
	prepared bool
	began    uint64
}

// Each message is preceded by its length, its subtransaction, and its number
// among all messages of the connection, cut to 32 bits.
const frameHeader = 12

// newSpool returns an empty spool, and empties the directory.
func newSpool(dir string, budget, most int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("postgres: the directory for open transactions: %w", err)
	}
	left, err := os.ReadDir(dir) // and not by a pattern, of which dir may be no part
	if err != nil {
		return nil, err
	}
	for _, f := range left {
		if strings.HasSuffix(f.Name(), spillSuffix) {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return nil, err
			}
		}
	}
	return &spool{dir: dir, budget: budget, most: most, open: map[uint32]*spooled{}}, nil
}

const spillSuffix = ".spill"

// add takes a message of a transaction, which may be rolled back alone as part
// of its subtransaction.
func (s *spool) add(xid, subxid, number uint32, message []byte) error {
	t := s.open[xid]
	if t == nil {
		t = &spooled{xid: xid}
		s.open[xid] = t
	}
	t.memory = binary.BigEndian.AppendUint32(t.memory, uint32(len(message)))
	t.memory = binary.BigEndian.AppendUint32(t.memory, subxid)
	t.memory = binary.BigEndian.AppendUint32(t.memory, number)
	t.memory = append(t.memory, message...)
	s.memory += int64(frameHeader + len(message))
	for s.memory > s.budget {
		if err := s.spill(); err != nil {
			return err
		}
	}
	return nil
}

// spill moves the largest transaction's memory to its file.
func (s *spool) spill() error {
	var t *spooled
	for _, one := range s.open {
		if t == nil || len(one.memory) > len(t.memory) {
			t = one
		}
	}
	n := int64(len(t.memory))
	if s.most > 0 && s.disk+n > s.most {
		return fmt.Errorf("%w: %d bytes of open transactions, of %d that are allowed", driver.ErrSpillFull, s.disk+n, s.most)
	}
	if t.file == nil {
		f, err := os.OpenFile(filepath.Join(s.dir, strconv.FormatUint(uint64(t.xid), 10)+spillSuffix), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return errors.Join(driver.ErrSpillFull, err)
		}
		t.file = f
	}
	if _, err := t.file.Write(t.memory); err != nil {
		return errors.Join(driver.ErrSpillFull, err)
	}
	crashpoint.Here(crashpoint.CDCSpilled)
	t.size += n
	s.disk += n
	s.spills++
	s.memory -= n
	t.memory = t.memory[:0]
	if cap(t.memory) > 1<<20 {
		t.memory = nil
	}
	return nil
}

// abort forgets a subtransaction, or with subxid == xid the whole transaction.
func (s *spool) abort(xid, subxid uint32) error {
	t := s.open[xid]
	if t == nil {
		return nil
	}
	if xid == subxid {
		return s.drop(t)
	}
	if t.aborted == nil {
		t.aborted = map[uint32]bool{}
	}
	t.aborted[subxid] = true
	return nil
}

// replay hands over the messages of a transaction, in order, and forgets it.
// Those of subtransactions that were rolled back are marked so.
func (s *spool) replay(xid uint32, each func(message []byte, number uint32, aborted bool) error) error {
	t := s.open[xid]
	if t == nil {
		return nil
	}
	if t.file != nil {
		if _, err := t.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		r := bufio.NewReaderSize(t.file, 256<<10)
		var header [frameHeader]byte
		var message []byte
		for left := t.size; left > 0; {
			if _, err := io.ReadFull(r, header[:]); err != nil {
				return fmt.Errorf("postgres: read back transaction %d: %w", xid, err)
			}
			n := int(binary.BigEndian.Uint32(header[:]))
			if cap(message) < n {
				message = make([]byte, n)
			}
			message = message[:n]
			if _, err := io.ReadFull(r, message); err != nil {
				return fmt.Errorf("postgres: read back transaction %d: %w", xid, err)
			}
			if err := each(message, binary.BigEndian.Uint32(header[8:]), t.aborted[binary.BigEndian.Uint32(header[4:])]); err != nil {
				return err
			}
			left -= int64(frameHeader + n)
		}
	}
	for m := t.memory; len(m) > 0; {
		n := frameHeader + int(binary.BigEndian.Uint32(m))
		if err := each(m[frameHeader:n], binary.BigEndian.Uint32(m[8:]), t.aborted[binary.BigEndian.Uint32(m[4:])]); err != nil {
			return err
		}
		m = m[n:]
	}
	return s.drop(t)
}

func (s *spool) drop(t *spooled) error {
	delete(s.open, t.xid)
	s.memory -= int64(len(t.memory))
	s.disk -= t.size
	if t.file == nil {
		return nil
	}
	return errors.Join(t.file.Close(), os.Remove(t.file.Name()))
}

// prepare marks a transaction that waits for COMMIT PREPARED.
func (s *spool) prepare(xid uint32, at uint64) {
	t := s.open[xid]
	if t == nil { // it changed nothing
		t = &spooled{xid: xid}
		s.open[xid] = t
	}
	t.prepared, t.began = true, at
}

// floor is the position of the oldest PREPARE that is not decided; false if
// there is none.
func (s *spool) floor() (at uint64, ok bool) {
	for _, t := range s.open {
		if t.prepared && (!ok || t.began < at) {
			at, ok = t.began, true
		}
	}
	return at, ok
}

func (s *spool) close() error {
	var errs []error
	for _, t := range s.open {
		errs = append(errs, s.drop(t))
	}
	return errors.Join(errs...)
}
