package guest

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
)

// trustTimeout is how long a guest may take to write a small file.
const trustTimeout = 10 * time.Second

// trustSSH has the guest accept certificates for its VM. A guest that cannot is used
// without.
func (c *connection) trustSSH(ctx context.Context, client *wire.Client) error {
	if c.trust == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, trustTimeout)
	defer cancel()
	err := client.TrustSSH(ctx, *c.trust)
	if _, ok := errors.AsType[*wire.RemoteError](err); ok { // a retry would fail, too
		c.log.Warn("the guest cannot trust SSH certificates", logkey.Error, err)
		return nil
	}
	return err
}

// Limits of the host keys of a guest; that of a key is in bytes.
const (
	maxHostKeys = 8
	maxHostKey  = 4096
)

// sshServer returns the state of a guest's SSH server, with host keys that are valid.
func sshServer(given wire.SSH) vm.SSHServer {
	s := vm.SSHServer{Certificates: given.Certificates}
	for _, text := range given.HostKeys[:min(maxHostKeys, len(given.HostKeys))] {
		if len(text) > maxHostKey {
			continue
		}
		if key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(text)); err == nil && len(options) == 0 {
			s.HostKeys = append(s.HostKeys, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))))
		}
	}
	return s
}
