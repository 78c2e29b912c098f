//go:build system

package e2e

import (
	"crypto/ed25519"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
)

// certified returns a new key with a certificate for a VM, and the VM's host keys.
func (w *world) certified(t *testing.T, v api.VM) (ssh.Signer, []string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.client.Connect(t.Context(), v.ID, api.Connect{PublicKey: string(ssh.MarshalAuthorizedKey(key.PublicKey()))})
	if err != nil {
		t.Fatalf("%s: %v", v.Name, err)
	}
	if got.Port != v.SSHPort || got.Username != debianUser {
		t.Errorf("%s: got %+v", v.Name, got)
	}
	cert, _, _, _, err := ssh.ParseAuthorizedKey([]byte(got.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert.(*ssh.Certificate), key)
	if err != nil {
		t.Fatal(err)
	}
	return signer, got.HostKeys
}

// tryCertificate logs in to a VM with nothing but a certificate, and returns the host key.
func tryCertificate(v api.VM, user string, signer ssh.Signer) (hostKey string, err error) {
	client, err := ssh.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(v.SSHPort)), &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: attemptLimit,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			hostKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
			return nil
		},
	})
	if err == nil {
		err = client.Close()
	}
	return hostKey, err
}

// requireCertificates checks that each VM accepts its own certificates only, and that its
// host keys are known.
func (w *world) requireCertificates(t *testing.T, vms ...api.VM) {
	t.Helper()
	for i, v := range vms {
		began := time.Now()
		signer, known := w.certified(t, v)
		hostKey, err := tryCertificate(v, debianUser, signer)
		if err != nil {
			t.Errorf("%s refuses its certificate: %v", v.Name, err)
		}
		took(t, "a login with a certificate", began)
		if !slices.Contains(known, hostKey) {
			t.Errorf("%s has the host key %s; known are %q", v.Name, hostKey, known)
		}
		other := vms[(i+1)%len(vms)]
		if _, err := tryCertificate(other, debianUser, signer); err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
			t.Errorf("%s, with the certificate of %s: %v", other.Name, v.Name, err)
		}
	}
}
