package middleware

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

func TestLimitersForgetWhoWasNotSeenForLongest(t *testing.T) {
	t.Parallel()
	l := newLimiters(3)
	for i := range 1000 {
		l.take("regular", 1, 1)
		l.take(fmt.Sprint(i), 1, 1)
	}
	if n := len(l.byName); n != 3 || l.recent.Len() != 3 {
		t.Errorf("%d names and %d buckets are kept, want 3", n, l.recent.Len())
	}
	if l.byName["regular"] == nil {
		t.Error("one who was seen all the time was forgotten")
	}
}

func TestWhoIsTurnedAwayDoesNotStandInTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		clients := NewClients(0)
		c := &athena.Client{Name: "shop", Limits: athena.Limits{RequestsPerSecond: 2}}
		admitted := 0
		for range 100 {
			if err := clients.Admit(c); err == nil {
				admitted++
			} else if e := athena.AsError(err); e.Code != athena.CodeTooManyRequests || e.RetryAfter <= 0 || e.RetryAfter > time.Second {
				t.Fatalf("got %v, retry after %s", err, e.RetryAfter)
			}
		}
		if admitted != 2 {
			t.Errorf("%d were admitted at once, want a second's worth of 2", admitted)
		}
		time.Sleep(time.Second)
		for i, want := range []athena.Code{"", "", athena.CodeTooManyRequests} {
			if got := athena.CodeOf(clients.Admit(c)); got != want {
				t.Errorf("a second later, request %d got %q, want %q", i+1, got, want)
			}
		}
		raised := *c
		raised.Limits.RequestsPerSecond = 50
		_ = clients.Admit(&raised) // from here on it fills faster
		time.Sleep(100 * time.Millisecond)
		for range 2 {
			if err := clients.Admit(&raised); err != nil {
				t.Errorf("a raised limit does not hold: %v", err)
			}
		}
		if NewClients(1).Admit(&athena.Client{Name: "free"}) != nil {
			t.Error("a client without a limit is limited")
		}
	})
}

func TestAddressesOfOneSiteCountAsOne(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7",
		"2001:db8:1:2:3::4": "2001:db8:1:2::/64", "2001:db8:1:2::9": "2001:db8:1:2::/64", "not one": "not one",
	} {
		if got := addressOf(ip); got != want {
			t.Errorf("%s counts as %s, want %s", ip, got, want)
		}
	}
}
