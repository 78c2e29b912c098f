package httpapi_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/sshca"
	"github.com/hatchvm/hatch/internal/vm"
)

// fixedAuthority is the store of an authority whose key is not stored.
type fixedAuthority struct{}

func (fixedAuthority) SSHAuthority(_ context.Context, fresh []byte) ([]byte, error) {
	return fresh, nil
}

func newAuthority(t testing.TB) *sshca.Authority {
	t.Helper()
	a, err := sshca.Open(t.Context(), fixedAuthority{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// someKey is a public key in authorized_keys form.
const someKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ"

func TestConnect(t *testing.T) {
	s := newServer(t)
	resp := s.call(t, "POST", "/vms/"+knownVM+"/connect", `{"public_key":"`+someKey+` me","agent_forwarding":true}`)
	wantStatus(t, resp, 200)
	got := decode[api.Connection](t, resp)
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(got.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	cert := key.(*ssh.Certificate)
	if cert.KeyId != "hatch:"+goodAcc+":"+knownVM || cert.ValidPrincipals[0] != knownVM || len(cert.Extensions) != 3 {
		t.Errorf("the certificate is %+v", cert)
	}
	if got.Host != "127.0.0.1" || got.Port != 16001 || got.Username != "debian" || len(got.HostKeys) != 1 || got.ValidUntil != int64(cert.ValidBefore) || got.ValidUntil < time.Now().Unix()+290 {
		t.Errorf("got %+v", got)
	}
	if shown := decode[api.VM](t, s.call(t, "GET", "/vms/"+knownVM, "")); len(shown.SSHHostKeys) != 1 || shown.SSHHostKeys[0] != someKey {
		t.Errorf("the VM has the host keys %q", shown.SSHHostKeys)
	}
	req := s.request(t, "POST", "/vms/"+knownVM+"/connect", `{"public_key":"`+someKey+`","username":"alice"}`)
	req.Host = "hatch.example:8443"
	if got := decode[api.Connection](t, s.send(t, req)); got.Host != "hatch.example" || got.Username != "alice" {
		t.Errorf("got %+v", got)
	}
}

func TestConnectIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*vm.VM)
		body   string // "" for a good one
		status int
		code   string
	}{
		"a key that is none":  {nil, `{"public_key":"ssh-ed25519 AAAA"}`, 400, "invalid_public_key"},
		"a private key":       {nil, `{"public_key":"-----BEGIN OPENSSH PRIVATE KEY-----"}`, 400, "invalid_public_key"},
		"no key":              {nil, `{}`, 400, "invalid_public_key"},
		"an option as user":   {nil, `{"public_key":"` + someKey + `","username":"-oProxyCommand=x"}`, 400, "invalid_username"},
		"no network":          {func(v *vm.VM) { v.EnableNetwork = false }, "", 409, "no_ssh_port"},
		"no port":             {func(v *vm.VM) { v.Lease.SSHPort = 0 }, "", 409, "no_ssh_port"},
		"stopped":             {func(v *vm.VM) { v.State = vm.Stopped }, "", 409, "vm_not_running"},
		"paused":              {func(v *vm.VM) { v.State = vm.Paused }, "", 409, "vm_not_running"},
		"not reported":        {func(v *vm.VM) { v.Conditions = vm.Conditions{} }, "", 503, "ssh_not_known"},
		"no trust":            {func(v *vm.VM) { v.Conditions.SSH.Certificates = false }, "", 409, "ssh_certificates_unsupported"},
		"no host keys":        {func(v *vm.VM) { v.Conditions.SSH.HostKeys = nil }, "", 409, "ssh_certificates_unsupported"},
		"it sleeps, as it is": {func(v *vm.VM) { v.State = vm.Snapshotted }, "", 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.vms.change = tc.change
			body := tc.body
			if body == "" {
				body = `{"public_key":"` + someKey + `"}`
			}
			resp := s.call(t, "POST", "/vms/"+knownVM+"/connect", body)
			if wantStatus(t, resp, tc.status); tc.code != "" && resp.problem(t).Code != tc.code {
				t.Errorf("got %s", resp.body)
			}
			if strings.Contains(string(resp.body), "PRIVATE") {
				t.Errorf("the answer repeats the key: %s", resp.body)
			}
		})
	}
}
