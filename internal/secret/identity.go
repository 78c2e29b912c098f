package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
)

// MaxKeyFile bounds a key file, in bytes.
const MaxKeyFile = 16 << 10

// Identity opens data keys.
type Identity struct {
	*age.X25519Identity
	Retired bool // by a rotation, which takes it out of the key file at its end
}

// Identities are those of a key file. The first wraps new keys. There are others while
// the secrets are being rotated, or because an operator has put them there.
type Identities []Identity

// retiredMark is the line before a retired identity.
const retiredMark = "# retired: hatchd removes it when all secrets are encrypted with the first"

// NewIdentity makes an identity.
func NewIdentity() (Identity, error) {
	made, err := age.GenerateX25519Identity()
	if err != nil {
		return Identity{}, fmt.Errorf("cannot make a key: %w", err)
	}
	return Identity{X25519Identity: made}, nil
}

// Rotating reports whether one of them is retired.
func (ids Identities) Rotating() bool {
	return slices.ContainsFunc(ids, func(one Identity) bool { return one.Retired })
}

// Rotated returns them with a new first one. The former first is retired.
func (ids Identities) Rotated() (Identities, error) {
	made, err := NewIdentity()
	if err != nil {
		return nil, err
	}
	all := append(Identities{made}, ids...)
	all[1].Retired = true
	return all, nil
}

// Kept returns those that are not retired.
func (ids Identities) Kept() (kept Identities) {
	for _, one := range ids {
		if !one.Retired {
			kept = append(kept, one)
		}
	}
	return kept
}

// ParseIdentities reads the text of a key file, which has the form that age-keygen
// writes. The error does not repeat the text.
func ParseIdentities(text []byte) (Identities, error) {
	if len(text) > MaxKeyFile {
		return nil, fmt.Errorf("it has more than %d bytes", MaxKeyFile)
	}
	var ids Identities
	retired := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			retired = retired || line == retiredMark
			continue
		}
		parsed, err := age.ParseX25519Identity(line)
		if err != nil { // the error may have the key
			return nil, errors.New("it has a line that is not an identity of age: want AGE-SECRET-KEY-1…, as age-keygen makes it")
		}
		ids = append(ids, Identity{parsed, retired && len(ids) > 0}) // the first wraps
		retired = false
	}
	if len(ids) == 0 {
		return nil, errors.New("it has no identity: want a line AGE-SECRET-KEY-1…, as age-keygen makes it")
	}
	return ids, nil
}

// Text returns the text of a key file.
func (ids Identities) Text() []byte {
	var text bytes.Buffer
	text.WriteString("# What opens the secrets in hatchd's database. Keep a copy elsewhere: without it they are lost.\n")
	for _, one := range ids {
		if one.Retired {
			text.WriteString(retiredMark + "\n")
		}
		fmt.Fprintf(&text, "# public key: %s\n%s\n", one.Recipient(), one)
	}
	return text.Bytes()
}

// Wrapped is a data key as the database has it.
type Wrapped struct {
	ID        string // of the key
	Recipient string // public key of the identity that unwraps it
	Key       []byte // encrypted by age
}

// Wrap encrypts a key to the first identity.
func (ids Identities) Wrap(k Key) (Wrapped, error) {
	recipient := ids[0].Recipient()
	var text bytes.Buffer
	w, err := age.Encrypt(&text, recipient)
	if err == nil {
		_, err = w.Write(k.bytes())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return Wrapped{}, fmt.Errorf("cannot encrypt a data key: %w", err)
	}
	return Wrapped{ID: k.ID(), Recipient: recipient.String(), Key: text.Bytes()}, nil
}

// Unwrap returns the key, if one of the identities is its recipient.
func (ids Identities) Unwrap(w Wrapped) (Key, error) {
	for _, one := range ids {
		if one.Recipient().String() != w.Recipient {
			continue
		}
		plain, err := age.Decrypt(bytes.NewReader(w.Key), one.X25519Identity)
		if err != nil {
			return Key{}, fmt.Errorf("cannot decrypt a data key: %w", err)
		}
		text, err := io.ReadAll(io.LimitReader(plain, keyIDSize+keySize+1))
		if err != nil {
			return Key{}, fmt.Errorf("cannot decrypt a data key: %w", err)
		}
		k, err := keyOf(text)
		if err == nil && k.ID() != w.ID {
			err = errors.New("a data key has another id than its row")
		}
		return k, err
	}
	return Key{}, fmt.Errorf("no identity is that of %s", w.Recipient)
}
