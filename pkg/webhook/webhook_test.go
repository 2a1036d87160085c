package webhook

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
)

var t0 = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// The example of the Standard Webhooks specification.
func TestSignaturesAreThoseOfTheStandard(t *testing.T) {
	t.Parallel()
	secret, err := DecodeSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got := Sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func header(id, timestamp, signature string) http.Header {
	h := http.Header{}
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", timestamp)
	h.Set("webhook-signature", signature)
	return h
}

func TestVerifyRefusesWhatWasNotSigned(t *testing.T) {
	t.Parallel()
	secret, body := Derive([]byte("deployment"), "key"), []byte(`{"a":1}`)
	good := Sign(secret, "job_1_1", t0, body)
	at := "1772600767"
	tests := map[string]struct {
		header http.Header
		body   string
		now    time.Time
		want   error
	}{
		"a good one":                  {header("job_1_1", at, good), `{"a":1}`, t0, nil},
		"at the edge of tolerance":    {header("job_1_1", at, good), `{"a":1}`, t0.Add(Tolerance), nil},
		"one of several signatures":   {header("job_1_1", at, "v2,zz v1,AAAA "+good), `{"a":1}`, t0, nil},
		"another body":                {header("job_1_1", at, good), `{"a":2}`, t0, ErrSignature},
		"another id":                  {header("job_1_2", at, good), `{"a":1}`, t0, ErrSignature},
		"another time":                {header("job_1_1", "1772600768", good), `{"a":1}`, t0, ErrSignature},
		"no version":                  {header("job_1_1", at, strings.TrimPrefix(good, "v1,")), `{"a":1}`, t0, ErrSignature},
		"no signature":                {header("job_1_1", at, ""), `{"a":1}`, t0, ErrSignature},
		"not base64":                  {header("job_1_1", at, "v1,???"), `{"a":1}`, t0, ErrSignature},
		"an old one, played again":    {header("job_1_1", at, good), `{"a":1}`, t0.Add(Tolerance + time.Second), ErrTimestamp},
		"one from the future":         {header("job_1_1", at, good), `{"a":1}`, t0.Add(-Tolerance - time.Second), ErrTimestamp},
		"no id":                       {header("", at, good), `{"a":1}`, t0, ErrHeaders},
		"a timestamp that is no time": {header("job_1_1", "soon", good), `{"a":1}`, t0, ErrHeaders},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := Verify(secret, tc.header, []byte(tc.body), tc.now, Tolerance); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	if err := Verify(Derive([]byte("deployment"), "other"), header("job_1_1", at, good), body, t0, Tolerance); !errors.Is(err, ErrSignature) {
		t.Errorf("the secret of another key: got %v", err)
	}
}

func TestASecretIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.SliceOfN(rapid.Byte(), 24, 64).Draw(t, "secret")
		got, err := DecodeSecret(EncodeSecret(secret))
		if err != nil || string(got) != string(secret) {
			t.Fatalf("got %x, %v", got, err)
		}
	})
	for _, text := range []string{"", "whsec_", "whsec_AAAA", "whsec_???", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"} {
		if _, err := DecodeSecret(text); !errors.Is(err, ErrSecret) {
			t.Errorf("%q: got %v, want ErrSecret", text, err)
		}
	}
}

func TestThePayloadSaysHowTheJobEnded(t *testing.T) {
	t.Parallel()
	h := Hook{Client: "shop", Job: "j1", Revision: 7}
	raw, err := h.Payload(Summary{State: "failed", At: t0, Revision: 6, Attempts: 2, Code: athena.CodeQueryFailed, Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"type":"deferred.failed","timestamp":"2026-03-04T05:06:07Z","data":{"id":"j1","client":"shop","state":"failed","attempts":2,"rows":0,"bytes":0,"rows_affected":0,"code":"query_failed","labels":{"a":"b"}}}`
	if string(raw) != want {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
	raw, err = h.Payload(Summary{State: "succeeded", At: t0, HasResult: true})
	var got struct {
		Data struct {
			ResultURL string `json:"result_url"`
		}
	}
	if err != nil || json.Unmarshal(raw, &got) != nil || got.Data.ResultURL != "/gateway/deferred/j1/result" {
		t.Errorf("got %s, %v; want the path of the result", raw, err)
	}
	if h.ID() != "job_j1_7" {
		t.Errorf("id is %s", h.ID())
	}
}

func loopback() *Guard {
	return &Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
}

func TestTheReceiverCanVerifyWhatWasSent(t *testing.T) {
	t.Parallel()
	secret := Derive([]byte("deployment"), "key")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := Verify(secret, r.Header, body, t0, Tolerance); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s with %v: %v", r.Method, r.Header, err)
		}
		if _, sent := r.Header["Idempotency-Key"]; sent {
			t.Error("an Idempotency-Key was sent")
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)
	s := NewSender(loopback(), 0)
	t.Cleanup(s.Close)
	a, err := s.Send(t.Context(), srv.URL, "job_1_1", secret, []byte(`{"a":1}`), t0)
	if err != nil || !a.OK() {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestWhatAReceiverMayNotDo(t *testing.T) {
	t.Parallel()
	secret := []byte("secret")
	followed := false
	mux := http.NewServeMux()
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { followed = true })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		chunk := make([]byte, 32<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	release := make(chan struct{})
	mux.HandleFunc("/silent", func(http.ResponseWriter, *http.Request) { <-release })
	mux.HandleFunc("/later", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "120")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(release) })
	s := NewSender(loopback(), 500*time.Millisecond)
	t.Cleanup(s.Close)
	send := func(path string) (Answer, error) {
		return s.Send(t.Context(), srv.URL+path+"?token=hunter2", "job_1_1", secret, nil, t0)
	}

	if a, err := send("/redirect"); err != nil || a.Status != http.StatusTemporaryRedirect || a.OK() || followed {
		t.Errorf("a redirect: got %+v, %v; followed: %t", a, err, followed)
	}
	if a, err := send("/endless"); err != nil || !a.OK() {
		t.Errorf("an endless body: got %+v, %v", a, err)
	}
	if a, err := send("/later"); err != nil || a.RetryAfter != 2*time.Minute {
		t.Errorf("Retry-After: got %+v, %v", a, err)
	}
	_, err := send("/silent")
	if err == nil {
		t.Error("a silent receiver was not given up")
	} else if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows the URL: %v", err)
	}
}

func TestRetryAfterIsSecondsOrADate(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]time.Duration{
		"": 0, "30": 30 * time.Second, "-1": 0, "soon": 0, "99999999999999": 0,
		t0.Add(time.Hour).Format(http.TimeFormat):  time.Hour,
		t0.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(v, t0); got != want {
			t.Errorf("%q: got %s, want %s", v, got, want)
		}
	}
}
