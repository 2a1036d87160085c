package webhook

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A Hook is the order to announce the end of a job. It is stored together with
// the event that ends the job, or not at all.
type Hook struct {
	Client string `json:"client"`
	Job    string `json:"job"`
	URL    string `json:"url"`
	// Key is the public id of the key that submitted the job; the secret that
	// signs the message is derived for it.
	Key     string    `json:"key"`
	Created time.Time `json:"created"`

	// What follows is kept by the deliverer from one attempt to the next.

	// Revision tells the ends of a requeued job apart: the sequence of the
	// message that ordered the delivery, which follows the event that it is about.
	Revision uint64 `json:"revision,omitempty"`
	// Attempts counts the requests that were made.
	Attempts int `json:"attempts,omitempty"`
	// Parked counts how often in a row the hook made way because its host was
	// busy.
	Parked int `json:"parked,omitempty"`
	// LastStatus is the HTTP status of the last attempt; 0 if none came.
	LastStatus int    `json:"last_status,omitempty"`
	LastError  string `json:"last_error,omitempty"`
}

// ID is the webhook-id: the same for all attempts to announce one end of a job,
// so that a receiver can tell a repeated message.
func (h *Hook) ID() string { return fmt.Sprintf("job_%s_%d", h.Job, h.Revision) }

// Summary is what is said of a job that has ended.
type Summary struct {
	State        string            `json:"state"`
	At           time.Time         `json:"-"` // when it came to that state
	Revision     uint64            `json:"-"` // the sequence of the event that says so
	Ended        bool              `json:"-"` // the state is terminal
	Attempts     int               `json:"attempts"`
	Rows         int64             `json:"rows"`
	Bytes        int64             `json:"bytes"` // of NDJSON
	RowsAffected int64             `json:"rows_affected"`
	Code         athena.Code       `json:"code,omitempty"` // why it failed
	Labels       map[string]string `json:"labels,omitempty"`
	// HasResult says that there is a result to fetch.
	HasResult bool `json:"-"`
}

// Payload is the message's body (law 3).
func (h *Hook) Payload(s Summary) ([]byte, error) {
	type data struct {
		ID     string `json:"id"`
		Client string `json:"client"`
		Summary
		ResultURL string `json:"result_url,omitempty"`
	}
	d := data{ID: h.Job, Client: h.Client, Summary: s}
	if s.HasResult {
		d.ResultURL = "/gateway/deferred/" + h.Job + "/result"
	}
	return json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      data      `json:"data"`
	}{"deferred." + s.State, s.At.UTC(), d})
}
