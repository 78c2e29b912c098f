package sshca_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/sshca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 3, 6, 12, 0, 0, 5e8, time.UTC)

// memory is a store.
type memory struct {
	seed []byte
	err  error
}

func (m *memory) SSHAuthority(_ context.Context, fresh []byte) ([]byte, error) {
	if m.seed == nil {
		m.seed = bytes.Clone(fresh)
	}
	return m.seed, m.err
}

func open(t *testing.T, m *memory) *sshca.Authority {
	t.Helper()
	a, err := sshca.Open(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// lineOf returns the public key of a private one in authorized_keys form.
func lineOf(t *testing.T, public any) string {
	t.Helper()
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(key))
}

func parse(t *testing.T, text string) *ssh.Certificate {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ssh.Certificate)
}

func TestCertificatesAreForOneVMAndAFewMinutes(t *testing.T) {
	a := open(t, &memory{})
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	login := sshca.Login{UserID: "acc_a", VMID: "vm_a", Key: lineOf(t, public)}
	got, err := a.Sign(login, now)
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, got.Text)
	if c.CertType != ssh.UserCert || c.KeyId != "hatch:acc_a:vm_a" || len(c.ValidPrincipals) != 1 || c.ValidPrincipals[0] != "vm_a" {
		t.Errorf("got %+v", c)
	}
	if c.ValidAfter != uint64(now.Unix()-30) || c.ValidBefore != uint64(now.Unix()+300) || got.ValidUntil.Unix() != now.Unix()+300 {
		t.Errorf("valid from %d until %d", c.ValidAfter, c.ValidBefore)
	}
	if len(c.Extensions) != 2 || len(c.CriticalOptions) != 0 {
		t.Errorf("permits %v", c.Extensions)
	}
	for _, name := range []string{"permit-pty", "permit-port-forwarding"} {
		if _, ok := c.Extensions[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	login.AgentForwarding = true
	again, err := a.Sign(login, now)
	if err != nil {
		t.Fatal(err)
	}
	other := parse(t, again.Text)
	if _, ok := other.Extensions["permit-agent-forwarding"]; !ok || other.Serial == c.Serial {
		t.Errorf("the second one is %+v", other)
	}
	requireChecked(t, a, c)
}

// requireChecked has the checker of an SSH server look at a certificate for vm_a.
func requireChecked(t *testing.T, a *sshca.Authority, c *ssh.Certificate) {
	t.Helper()
	checker := func(a *sshca.Authority, at time.Time) *ssh.CertChecker {
		return &ssh.CertChecker{Clock: func() time.Time { return at }, IsUserAuthority: func(key ssh.PublicKey) bool {
			return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) == a.PublicKey()
		}}
	}
	for name, tc := range map[string]struct {
		checker   *ssh.CertChecker
		principal string
		ok        bool
	}{
		"its VM":            {checker(a, now), "vm_a", true},
		"another VM":        {checker(a, now), "vm_b", false},
		"another authority": {checker(open(t, &memory{}), now), "vm_a", false},
		"too late":          {checker(a, now.Add(sshca.Lifetime)), "vm_a", false},
	} {
		if _, err := tc.checker.Authenticate(user(tc.principal), c); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// user is the side of a connection that logs in.
type user string

func (u user) User() string        { return string(u) }
func (user) SessionID() []byte     { return nil }
func (user) ClientVersion() []byte { return nil }
func (user) ServerVersion() []byte { return nil }
func (user) RemoteAddr() net.Addr  { return &net.TCPAddr{} }
func (user) LocalAddr() net.Addr   { return &net.TCPAddr{} }

func TestTheAuthorityStays(t *testing.T) {
	m := &memory{}
	if a, b := open(t, m), open(t, m); a.PublicKey() != b.PublicKey() || !strings.HasPrefix(a.PublicKey(), "ssh-ed25519 AAAA") {
		t.Errorf("first %s, then %s", a.PublicKey(), b.PublicKey())
	}
	if _, err := sshca.Open(t.Context(), &memory{seed: []byte("short")}); err == nil {
		t.Error("a key of another size is used")
	}
	broken := errors.New("broken")
	if _, err := sshca.Open(t.Context(), &memory{err: broken}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestKeys(t *testing.T) {
	a := open(t, &memory{})
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := lineOf(t, public)
	certificate, err := a.Sign(sshca.Login{VMID: "vm_a", Key: good}, now)
	if err != nil {
		t.Fatal(err)
	}
	weak := lineOf(t, &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1023, 1), E: 65537})
	for name, tc := range map[string]struct {
		key string
		ok  bool
	}{
		"ed25519": {good, true}, "ecdsa": {lineOf(t, curve.Public()), true}, "rsa": {lineOf(t, strong.Public()), true}, "with a comment": {strings.TrimSpace(good) + " me@host\n", true},
		"empty": {"", false}, "no key": {"ssh-ed25519 AAAA", false}, "two": {good + good, false}, "options": {`command="id" ` + good, false},
		"a certificate": {certificate.Text, false}, "rsa of 1024 bits": {weak, false}, "long": {good + strings.Repeat(" ", 1<<15) + "x", false},
	} {
		_, err := a.Sign(sshca.Login{VMID: "vm_a", Key: tc.key}, now)
		if (err == nil) != tc.ok || err != nil && !errs.HasCode(err, "invalid_public_key") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzSign(f *testing.F) {
	a, err := sshca.Open(f.Context(), &memory{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ me")
	f.Fuzz(func(t *testing.T, key string) {
		cert, err := a.Sign(sshca.Login{UserID: "acc_a", VMID: "vm_a", Key: key}, now)
		if err == nil && parse(t, cert.Text).ValidPrincipals[0] != "vm_a" {
			t.Errorf("%q is signed for another VM", key)
		}
	})
}
