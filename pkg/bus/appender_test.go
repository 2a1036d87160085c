package bus_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

func changeStream(t *testing.T, b *bus.Bus, maxBytes int64) jetstream.Stream {
	t.Helper()
	s, err := b.JetStream().CreateStream(t.Context(), bus.CDCConfig("shop", time.Hour, maxBytes, 1))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func changes(n, size int, mark string) []*nats.Msg {
	out := make([]*nats.Msg, n)
	for i := range out {
		data := make([]byte, size)
		copy(data, fmt.Sprintf("%s-%d", mark, i))
		out[i] = &nats.Msg{Subject: bus.CDC("shop", "public", "t"), Header: nats.Header{}, Data: data}
	}
	return out
}

// Groups go one behind the other, as single messages or as
// atomic batches, and stand in the stream in their order.
func TestAppenderKeepsTheOrder(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	s := changeStream(t, b, -1)
	a, err := bus.NewAppender(b.Conn(), bus.CDCStream("shop"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var sent []*bus.Appended
	var want []string
	for i, n := range []int{1, 3, 50, 1, 1000, 11, 12, 13} {
		mark := fmt.Sprintf("group %d", i)
		g, err := a.Append(t.Context(), changes(n, 20, mark))
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, g)
		for j := range n {
			want = append(want, fmt.Sprintf("%s-%d", mark, j))
		}
	}
	for _, g := range sent {
		if err := a.Wait(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	if last := sent[len(sent)-1].Last; last != uint64(len(want)) {
		t.Errorf("the last sequence is %d, want %d", last, len(want))
	}
	for i, text := range want {
		m, err := s.GetMsg(t.Context(), uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(m.Data[:len(text)]); got != text {
			t.Fatalf("message %d is %q, want %q", i+1, got, text)
		}
	}
}

// Who was overtaken stores nothing any more, not even what would fit again.
func TestAppenderThatWasOvertaken(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	s := changeStream(t, b, -1)
	old, err := bus.NewAppender(b.Conn(), bus.CDCStream("shop"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	young, err := bus.NewAppender(b.Conn(), bus.CDCStream("shop"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer young.Close()
	g, err := young.Append(t.Context(), changes(2, 10, "young"))
	if err != nil {
		t.Fatal(err)
	}
	if err := young.Wait(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 20} {
		g, err := old.Append(t.Context(), changes(n, 10, "old"))
		if err == nil {
			err = old.Wait(t.Context(), g)
		}
		if !errors.Is(err, bus.ErrWrongSequence) {
			t.Errorf("%d messages: %v, want ErrWrongSequence", n, err)
		}
	}
	if info, err := s.Info(t.Context()); err != nil || info.State.LastSeq != 2 {
		t.Errorf("the stream ends at %d, %v; want 2", info.State.LastSeq, err)
	}
}

// A message that another has put where ours would have been does not stand for
// it: what belongs behind ours is not stored behind the other's.
func TestAppenderWhosePlaceWasTaken(t *testing.T) {
	t.Parallel()
	for _, taken := range []int{1, 2, 12} {
		for _, group := range []int{2, 3, 12, 13} {
			t.Run(fmt.Sprintf("%d taken from a group of %d", taken, group), func(t *testing.T) {
				t.Parallel()
				b := bustest.Start(t)
				s := changeStream(t, b, -1)
				a, err := bus.NewAppender(b.Conn(), bus.CDCStream("shop"), 0)
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				for _, m := range changes(taken, 10, "another") {
					if _, err := b.JetStream().PublishMsg(t.Context(), m); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 { // the second one, too, would fit behind the other's
					g, err := a.Append(t.Context(), changes(group, 10, "ours"))
					if err == nil {
						err = a.Wait(t.Context(), g)
					}
					if !errors.Is(err, bus.ErrWrongSequence) {
						t.Errorf("the error is %v, want ErrWrongSequence", err)
					}
				}
				if info, err := s.Info(t.Context()); err != nil || info.State.LastSeq != uint64(taken) {
					t.Errorf("the stream ends at %d, %v; want %d", info.State.LastSeq, err, taken)
				}
			})
		}
	}
}

// A full stream refuses, and what was sent behind is refused with it: there is
// no gap.
func TestAppenderToAFullStream(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	s := changeStream(t, b, 256<<10)
	a, err := bus.NewAppender(b.Conn(), bus.CDCStream("shop"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var sent []*bus.Appended
	var failed error
	for i := range 8 { // 8 times 80 kB do not fit
		size := 40 << 10
		if i == 7 {
			size = 10 // would fit
		}
		g, err := a.Append(t.Context(), changes(2, size, fmt.Sprint("group ", i)))
		if err != nil {
			failed = err
			break
		}
		sent = append(sent, g)
	}
	for _, g := range sent {
		if err := a.Wait(t.Context(), g); err != nil {
			failed = err
			break
		}
	}
	if !errors.Is(failed, bus.ErrFull) {
		t.Errorf("the error is %v, want ErrFull", failed)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.LastSeq == 0 || info.State.LastSeq > 6 {
		t.Errorf("the stream ends at %d", info.State.LastSeq)
	}
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("group %d-%d", (seq-1)/2, (seq-1)%2); string(m.Data[:len(want)]) != want {
			t.Errorf("message %d is not %q", seq, want)
		}
	}
	if _, err := a.Append(t.Context(), changes(1, 10, "later")); !errors.Is(err, bus.ErrFull) {
		t.Errorf("a later group: %v, want the first failure", err)
	}
}

// Without a stream, and without a connection, there is an error and no silence.
func TestAppenderWithoutAnswer(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	a, err := bus.NewAppender(b.Conn(), bus.CDCStream("none"), 0)
	if err != nil {
		t.Fatal(err)
	}
	msgs := changes(1, 10, "x")
	msgs[0].Subject = bus.CDC("none", "public", "t")
	g, err := a.Append(t.Context(), msgs)
	if err == nil {
		err = a.Wait(t.Context(), g)
	}
	if err == nil {
		t.Error("a stream that does not exist took a message")
	}
	if _, err := a.Append(t.Context(), changes(1, 10, "y")); err == nil {
		t.Error("an appender that had failed went on")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
