package bus_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/bus"
)

// childDir in the environment makes this binary the process that is killed.
const childDir = "ATHENA_BUS_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, child(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child publishes until it is killed and prints each sequence that was
// acknowledged, with the subject.
func child(dir string) error {
	s, err := bus.StartServer(bus.ServerConfig{Dir: dir})
	if err != nil {
		return err
	}
	nc, err := s.Connect()
	if err != nil {
		return err
	}
	b, err := bus.New(nc, bus.Config{Embedded: s, MaxBytes: small()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.Reconcile(ctx); err != nil {
		return err
	}
	p := bus.NewPublisher(b, bus.StreamJobs)
	failed := make(chan error, 1)
	for w := range 40 {
		go func() {
			for i := 0; ; i++ {
				subject := bus.JobSubject("normal", "postgres", "shop", fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i))
				seq, err := p.Publish(ctx, &nats.Msg{Subject: subject, Data: []byte(subject)})
				if err != nil {
					failed <- err
					return
				}
				fmt.Printf("%d %s\n", seq, subject)
			}
		}()
	}
	return <-failed
}

// small are limits that a test machine has room for.
func small() map[string]int64 {
	limits := map[string]int64{}
	for _, s := range bus.Topology(bus.Config{}) {
		limits[s.Name] = 1 << 28
	}
	return limits
}
