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

// trusts reports whether the request has the sandbox's token, or is for a file and has a
// signature that was made with it.
func (c call) trusts(r *http.Request) bool {
	if c.Token == "" {
		return true
	}
	if given := r.Header.Get("X-Access-Token"); equal(given, c.Token) {
		return true
	}
	return r.URL.Path == "/files" && c.signed(r)
}

// signed reports whether the URL of a request for a file has a valid signature. The path
// is signed as it is in the query.
func (c call) signed(r *http.Request) bool {
	operation := map[string]string{http.MethodGet: "read", http.MethodHead: "read", http.MethodPost: "write"}[r.Method]
	q := r.URL.Query()
	given := q.Get("signature")
	if given == "" || operation == "" {
		return false
	}
	expiration := q.Get("signature_expiration")
	if q.Has("signature_expiration") {
		ends, err := strconv.ParseInt(expiration, 10, 64)
		if err != nil || ends < time.Now().Unix() {
			return false
		}
	}
	return equal(given, signature(q.Get("path"), operation, q.Get("username"), c.Token, expiration))
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
