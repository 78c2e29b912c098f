package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// A secret is whsec_ and 24 to 64 bytes in base64.
const (
	secretPrefix = "whsec_"
	minSecret    = 24
	maxSecret    = 64
	ownSecret    = 32 // bytes of a generated secret
)

func newSecret() string {
	key := make([]byte, ownSecret)
	_, _ = rand.Read(key) // never fails; see crypto/rand
	return secretPrefix + base64.StdEncoding.EncodeToString(key)
}

// checkSecret returns an error if the secret is not valid. The error does not
// contain the secret.
func checkSecret(secret string) error {
	key, err := secretKey(secret)
	if err != nil || len(key) < minSecret || len(key) > maxSecret {
		return errs.InvalidField("secret", "want %s followed by %d to %d bytes in base64", secretPrefix, minSecret, maxSecret).
			WithHint("leave it out to have one generated")
	}
	return nil
}

func secretKey(secret string) ([]byte, error) {
	text, ok := strings.CutPrefix(secret, secretPrefix)
	if !ok {
		return nil, fmt.Errorf("the secret does not begin with %s", secretPrefix)
	}
	return base64.StdEncoding.DecodeString(text)
}

// Sign sets the message's signature.
func (m *Message) Sign(secret string) error {
	key, err := secretKey(secret)
	if err != nil {
		return fmt.Errorf("cannot sign: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%d.", m.ID, m.Timestamp.Unix())
	_, _ = mac.Write(m.Body)
	m.Signature = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return nil
}
