// Package secret encrypts the secrets that hatchd stores, such as user data and the
// secrets of webhooks.
//
// It works in two layers. Values are sealed with a data key, with
// XChaCha20-Poly1305, because a value must cost microseconds. The data key is in the
// database, encrypted with age to an identity of a key file, which is not. So the
// database alone opens nothing, and neither does the key file. A sealed value belongs
// to its place: moved to another row, it cannot be opened.
//
// The package reads no files and no database: internal/host/keyfile and
// internal/store do. Start at [Keyring] and [Identities].
package secret

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// form1 is the first byte of a sealed value; the key's id, the nonce and the
// ciphertext follow.
const form1 = 1

const (
	keyIDSize = 8
	keySize   = chacha20poly1305.KeySize
	nonceSize = chacha20poly1305.NonceSizeX
	headSize  = 1 + keyIDSize + nonceSize
)

// Overhead is how many bytes longer a sealed value is.
const Overhead = headSize + chacha20poly1305.Overhead

// ErrNotOpened is the error of a value that cannot be opened: it was changed, or belongs
// to another place or to a key that the keyring does not have.
var ErrNotOpened = errors.New("a sealed value cannot be opened: it was changed, or was moved from another row, or its key is missing")

// Key is a data key.
type Key struct {
	id     [keyIDSize]byte
	secret [keySize]byte
}

// ID returns the key's id, which is not secret.
func (k Key) ID() string { return hex.EncodeToString(k.id[:]) }

// NewKey makes a random key.
func NewKey() (k Key) {
	_, _ = rand.Read(k.id[:]) // never fails
	_, _ = rand.Read(k.secret[:])
	return k
}

// bytes is the plaintext of a wrapped key.
func (k Key) bytes() []byte { return append(k.id[:], k.secret[:]...) }

func keyOf(plain []byte) (k Key, err error) {
	if len(plain) != keyIDSize+keySize {
		return k, errors.New("a data key has the wrong size")
	}
	copy(k.id[:], plain)
	copy(k.secret[:], plain[keyIDSize:])
	return k, nil
}

// Keyring seals with one key, and opens with that and others. It is safe for concurrent
// use.
type Keyring struct {
	current Key
	by      map[[keyIDSize]byte]cipher.AEAD
}

// NewKeyring returns a keyring that seals with current.
func NewKeyring(current Key, others ...Key) *Keyring {
	r := &Keyring{current: current, by: map[[keyIDSize]byte]cipher.AEAD{}}
	for _, k := range append(others, current) {
		aead, err := chacha20poly1305.NewX(k.secret[:])
		if err != nil { // the size is right
			panic(err)
		}
		r.by[k.id] = aead
	}
	return r
}

// Seal seals a value for its place, such as "vms/user_data/vm_a". An empty value stays
// empty: that there is none is no secret.
func (r *Keyring) Seal(place string, value []byte) []byte {
	if len(value) == 0 {
		return []byte{}
	}
	out := make([]byte, headSize, len(value)+Overhead)
	out[0] = form1
	copy(out[1:], r.current.id[:])
	_, _ = rand.Read(out[1+keyIDSize:]) // never fails
	return r.by[r.current.id].Seal(out, out[1+keyIDSize:headSize], value, additional(out[0], place))
}

// Open opens a value of a place. Errors: [ErrNotOpened].
func (r *Keyring) Open(place string, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 {
		return []byte{}, nil
	}
	if len(sealed) < Overhead || sealed[0] != form1 {
		return nil, fmt.Errorf("%s: %w", place, ErrNotOpened)
	}
	aead, ok := r.by[[keyIDSize]byte(sealed[1:])]
	if !ok {
		return nil, fmt.Errorf("%s: %w", place, ErrNotOpened)
	}
	value, err := aead.Open(nil, sealed[1+keyIDSize:headSize], sealed[headSize:], additional(sealed[0], place))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", place, ErrNotOpened)
	}
	return value, nil
}

// Reseal seals a value again with the current key. changed is false if that key has
// sealed it already.
func (r *Keyring) Reseal(place string, sealed []byte) (again []byte, changed bool, err error) {
	if len(sealed) == 0 || len(sealed) > keyIDSize && bytes.Equal(sealed[1:1+keyIDSize], r.current.id[:]) {
		return sealed, false, nil
	}
	value, err := r.Open(place, sealed)
	if err != nil {
		return nil, false, err
	}
	return r.Seal(place, value), true, nil
}

func additional(form byte, place string) []byte { return append([]byte{form}, place...) }

// Current returns the id of the key that seals.
func (r *Keyring) Current() string { return r.current.ID() }
