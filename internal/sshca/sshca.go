// Package sshca is the SSH certificate authority of hatchd: guests trust its key, and
// it signs the keys of users for one VM and a few minutes, so that no user's key has to
// be put into a VM.
//
// It does not decide who may log in: the API asks for the right to run commands. It has
// no HTTP and no SQL, and does not speak to guests: internal/agent/sshtrust is what
// makes a guest trust the key. Start at [Open] and [Authority.Sign].
package sshca

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/internal/errs"
)

// Lifetime is how long a certificate can begin logins. Sessions outlive it.
const Lifetime = 5 * time.Minute

// clockSkew is how much earlier than now a certificate begins: a guest's clock may be
// behind.
const clockSkew = 30 * time.Second

// maxKey limits a public key in authorized_keys form, in bytes.
const maxKey = 16 << 10

// minRSABits is the smallest size of an RSA key; sshd refuses less as well.
const minRSABits = 2048

// Store keeps the authority's key.
type Store interface {
	// SSHAuthority returns the seed of the key: fresh, which is stored then, if there is
	// none yet.
	SSHAuthority(ctx context.Context, fresh []byte) (seed []byte, err error)
}

// Authority signs keys. It is safe for concurrent use.
type Authority struct {
	signer ssh.Signer
}

// Open returns the authority of a database, and makes its key the first time.
func Open(ctx context.Context, s Store) (*Authority, error) {
	fresh := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(fresh) // never fails
	seed, err := s.SSHAuthority(ctx, fresh)
	if err != nil {
		return nil, err
	}
	if len(seed) != ed25519.SeedSize {
		return nil, errors.New("the key of the SSH certificate authority has the wrong size")
	}
	signer, err := ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		return nil, fmt.Errorf("cannot use the key of the SSH certificate authority: %w", err)
	}
	return &Authority{signer}, nil
}

// PublicKey returns the key that guests trust, in authorized_keys form without a comment.
func (a *Authority) PublicKey() string { return line(a.signer.PublicKey()) }

// Login is what a certificate is for.
type Login struct {
	UserID, VMID    string
	Key             string // the user's public key in authorized_keys form
	AgentForwarding bool
}

// Certificate is a signed key.
type Certificate struct {
	Text       string // in authorized_keys form
	ValidUntil time.Time
}

// Sign signs a user's key. Errors: errs.Invalid with code invalid_public_key.
func (a *Authority) Sign(l Login, now time.Time) (Certificate, error) {
	key, err := parseKey(l.Key)
	if err != nil {
		return Certificate{}, err
	}
	var serial [8]byte
	_, _ = rand.Read(serial[:]) // never fails
	until := now.Add(Lifetime).Truncate(time.Second)
	cert := &ssh.Certificate{
		CertType: ssh.UserCert, Key: key, Serial: binary.BigEndian.Uint64(serial[:]),
		KeyId: "hatch:" + l.UserID + ":" + l.VMID, ValidPrincipals: []string{l.VMID},
		ValidAfter: seconds(now.Add(-clockSkew)), ValidBefore: seconds(until),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": "", "permit-port-forwarding": ""}},
	}
	if l.AgentForwarding {
		cert.Extensions["permit-agent-forwarding"] = ""
	}
	if err := cert.SignCert(rand.Reader, a.signer); err != nil {
		return Certificate{}, fmt.Errorf("cannot sign an SSH certificate: %w", err)
	}
	return Certificate{Text: line(cert), ValidUntil: until}, nil
}

func seconds(t time.Time) uint64 { return uint64(max(0, t.Unix())) } //nolint:gosec // not negative

// line returns a key in authorized_keys form, without a comment.
func line(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

// parseKey reads one key of a kind that sshd accepts, without options.
func parseKey(text string) (ssh.PublicKey, error) {
	const want = "want one line such as ssh-ed25519 AAAA…, as in a .pub file"
	invalid := func(format string, args ...any) error {
		return errs.InvalidField("public_key", format, args...)
	}
	if len(text) > maxKey {
		return nil, invalid("is %d bytes; the limit is %d", len(text), maxKey)
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(strings.TrimSpace(text)))
	switch {
	case err != nil:
		return nil, invalid("is not a public key in authorized_keys form: %s", want)
	case len(options) > 0:
		return nil, invalid("has options: %s", want)
	case len(strings.TrimSpace(string(rest))) > 0:
		return nil, invalid("has several lines: %s", want)
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return key, nil
	case ssh.KeyAlgoRSA:
		if bits := rsaBits(key); bits < minRSABits {
			return nil, invalid("is an RSA key of %d bits; want at least %d", bits, minRSABits)
		}
		return key, nil
	default:
		return nil, invalid("is of the type %s; want ed25519, ecdsa or rsa", errs.Brief(key.Type()))
	}
}

// rsaBits returns the size of an RSA key, 0 for another key.
func rsaBits(key ssh.PublicKey) int {
	if k, ok := key.(ssh.CryptoPublicKey); ok {
		if k, ok := k.CryptoPublicKey().(*rsa.PublicKey); ok {
			return k.N.BitLen()
		}
	}
	return 0
}
