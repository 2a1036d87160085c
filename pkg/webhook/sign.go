package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Headers of a message.
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// Tolerance is how far a message's timestamp may lie from the receiver's clock
// where the receiver has no other wish.
const Tolerance = 5 * time.Minute

const (
	secretPrefix = "whsec_"
	version      = "v1,"
)

// Reasons for which Verify refuses a message.
var (
	ErrHeaders   = errors.New("webhook: the headers webhook-id, webhook-timestamp and webhook-signature are not all there and well-formed")
	ErrTimestamp = errors.New("webhook: the timestamp is too far from now")
	ErrSignature = errors.New("webhook: no signature matches")
	ErrSecret    = errors.New("webhook: a secret is whsec_ followed by 24 to 64 bytes in base64")
)

// Derive makes the secret that signs messages for one API key out of a secret
// of the deployment. Whoever knows the one learns nothing of the other.
func Derive(deployment []byte, key string) []byte {
	m := hmac.New(sha256.New, deployment)
	m.Write([]byte("athena webhook secret\x00" + key))
	return m.Sum(nil)
}

// EncodeSecret writes a secret as receivers are given it: whsec_ and base64.
func EncodeSecret(secret []byte) string {
	return secretPrefix + base64.StdEncoding.EncodeToString(secret)
}

// DecodeSecret reads what EncodeSecret wrote.
func DecodeSecret(text string) ([]byte, error) {
	raw, ok := strings.CutPrefix(text, secretPrefix)
	if !ok {
		return nil, ErrSecret
	}
	secret, err := base64.StdEncoding.DecodeString(raw)
	if err != nil || len(secret) < 24 || len(secret) > 64 {
		return nil, ErrSecret
	}
	return secret, nil
}

// Sign returns the signature of a message: "v1," and the base64 of an
// HMAC-SHA256 over id, timestamp and body.
func Sign(secret []byte, id string, at time.Time, body []byte) string {
	return version + base64.StdEncoding.EncodeToString(sum(secret, id, strconv.FormatInt(at.Unix(), 10), body))
}

func sum(secret []byte, id, timestamp string, body []byte) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(id + "." + timestamp + "."))
	m.Write(body)
	return m.Sum(nil)
}

// Verify reports why a message is not to be believed, or nil: its headers must
// carry a signature made with the secret, and its timestamp must lie within
// tolerance of now, either way. Signatures are compared in constant time.
func Verify(secret []byte, header http.Header, body []byte, now time.Time, tolerance time.Duration) error {
	id, timestamp := header.Get(HeaderID), header.Get(HeaderTimestamp)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if id == "" || err != nil {
		return ErrHeaders
	}
	if at := time.Unix(seconds, 0); at.Before(now.Add(-tolerance)) || at.After(now.Add(tolerance)) {
		return ErrTimestamp
	}
	// Several signatures, apart by spaces, let a sender change its secret.
	want := sum(secret, id, timestamp, body)
	for one := range strings.FieldsSeq(header.Get(HeaderSignature)) {
		encoded, ok := strings.CutPrefix(one, version)
		if !ok {
			continue
		}
		got, err := base64.StdEncoding.DecodeString(encoded)
		if err == nil && hmac.Equal(got, want) {
			return nil
		}
	}
	return ErrSignature
}
