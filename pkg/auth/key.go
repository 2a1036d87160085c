package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

const (
	keyPrefix  = "ath_"
	idLen      = 16 // hex digits
	secretSize = 32 // bytes
	keyLen     = len(keyPrefix) + idLen + 1 + 43
)

// A Presented key is what a caller sends: ath_{16 hex}.{43 base64url}, the
// public id and the secret.
type Presented struct {
	ID     string
	secret [secretSize]byte
}

// NewKey makes a key of 256 random bits with a random id.
func NewKey() Presented {
	var id [idLen / 2]byte
	rand.Read(id[:])
	return newKey(hex.EncodeToString(id[:]))
}

func newKey(id string) Presented {
	k := Presented{ID: id}
	rand.Read(k.secret[:])
	return k
}

// Reveal writes the key as ParseKey reads it. It is shown to its owner once,
// and goes nowhere else.
func (k Presented) Reveal() string {
	return keyPrefix + k.ID + "." + base64.RawURLEncoding.EncodeToString(k.secret[:])
}

// String gives the public part alone.
func (k Presented) String() string { return keyPrefix + k.ID + ".***" }

// GoString gives the public part alone.
func (k Presented) GoString() string { return k.String() }

var (
	errNotAKey = athena.Errorf(athena.CodeUnauthenticated, "this is not an Athena key; a key looks like ath_{16 hex digits}.{43 characters}")
	encoding   = base64.RawURLEncoding.Strict()
)

// ParseKey reads a key. Every key has one spelling. The error is
// unauthenticated and quotes nothing.
func ParseKey(s string) (Presented, error) {
	if len(s) != keyLen || !strings.HasPrefix(s, keyPrefix) || s[len(keyPrefix)+idLen] != '.' {
		return Presented{}, errNotAKey
	}
	k := Presented{ID: s[len(keyPrefix) : len(keyPrefix)+idLen]}
	for _, c := range []byte(k.ID) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return Presented{}, errNotAKey
		}
	}
	text := s[len(keyPrefix)+idLen+1:]
	if strings.ContainsAny(text, "\r\n") { // which the decoder skips
		return Presented{}, errNotAKey
	}
	if n, err := encoding.Decode(k.secret[:], []byte(text)); err != nil || n != secretSize {
		return Presented{}, errNotAKey
	}
	return k, nil
}

// hash is what is stored of a secret. The secret has 256 random bits, so that a
// fast hash is enough.
func (k Presented) hash(salt []byte) [sha256.Size]byte {
	var buf [secretSize + saltSize]byte
	n := copy(buf[:], salt)
	n += copy(buf[n:], k.secret[:])
	return sha256.Sum256(buf[:n])
}

const saltSize = 16

func (k Presented) matches(salt, hash []byte) bool {
	sum := k.hash(salt)
	return subtle.ConstantTimeCompare(sum[:], hash) == 1
}

// headers are those that may carry a key besides Authorization.
var headers = [...]string{"X-Athena-Key", "Apikey", "X-Api-Key"}

// FromHeader returns the key in a request's headers, or an empty string:
// Authorization: Bearer, X-Athena-Key, apikey, x-api-key, and, since it is the
// one header that a browser's WebSocket can set, an item of
// Sec-WebSocket-Protocol that looks like a key. The same key may stand in
// several of them; different ones are an invalid_request. Schemes of
// Authorization other than Bearer are not Athena's and are passed over.
func FromHeader(h http.Header) (string, error) {
	var found string
	take := func(key string) bool {
		key = strings.TrimSpace(key)
		if key == "" || key == found {
			return true
		}
		ok := found == ""
		found = key
		return ok
	}
	ok := true
	for _, v := range h["Authorization"] {
		scheme, key, _ := strings.Cut(strings.TrimSpace(v), " ")
		if strings.EqualFold(scheme, "Bearer") {
			ok = take(key) && ok
		}
	}
	for _, name := range headers {
		for _, v := range h[name] {
			ok = take(v) && ok
		}
	}
	for _, v := range h["Sec-Websocket-Protocol"] {
		for item := range strings.SplitSeq(v, ",") {
			if item = strings.TrimSpace(item); strings.HasPrefix(item, keyPrefix) {
				ok = take(item) && ok
			}
		}
	}
	if !ok {
		return "", athena.Errorf(athena.CodeInvalidRequest, "the request carries different keys; send one, as Authorization: Bearer ath_…")
	}
	return found, nil
}
