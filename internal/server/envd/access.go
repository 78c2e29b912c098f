package envd

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Messages of refusals. Clients of signed URLs compare them.
const (
	noToken  = "the access token of the sandbox is missing or wrong"
	unsigned = "invalid signature"
	expired  = "signature is already expired"
)

// distrust returns why a request must not be served: "" if it has the sandbox's token, or
// is for a file and has a signature that was made with it.
func (c call) distrust(r *http.Request) string {
	if c.Token == "" || equal(r.Header.Get("X-Access-Token"), c.Token) {
		return ""
	}
	if r.URL.Path != "/files" || !r.URL.Query().Has("signature") {
		return noToken
	}
	return c.checkSignature(r)
}

// checkSignature returns what is wrong with the signature of a file's URL, "" if it is
// valid. The path is signed as it is in the query.
func (c call) checkSignature(r *http.Request) string {
	operation := map[string]string{http.MethodGet: "read", http.MethodHead: "read", http.MethodPost: "write"}[r.Method]
	q := r.URL.Query()
	expiration := q.Get("signature_expiration")
	want := signature(q.Get("path"), operation, q.Get("username"), c.Token, expiration)
	if operation == "" || !equal(q.Get("signature"), want) {
		return unsigned
	}
	if !q.Has("signature_expiration") {
		return ""
	}
	if ends, err := strconv.ParseInt(expiration, 10, 64); err != nil || ends < time.Now().Unix() {
		return expired
	}
	return ""
}

// signature returns the signature of a file's URL; expiration is "" for one that does not
// expire.
func signature(path, operation, user, token, expiration string) string {
	parts := []string{path, operation, user, token}
	if expiration != "" {
		parts = append(parts, expiration)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// equal compares secrets in a time that says nothing about them.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
