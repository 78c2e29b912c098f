package wire

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
)

// OpTrustSSH has the guest's SSH server accept certificates: SSHTrust → nothing. What was
// trusted before is replaced. hatchd sends it in each session, before other requests; a
// clone also gets it with its identity.
const OpTrustSSH Op = "ssh.trust"

// SSHTrust is whose certificates the guest accepts, and which of them.
type SSHTrust struct {
	Authority string `json:"authority"` // public key in authorized_keys form, of the kind ssh-ed25519
	Principal string `json:"principal"` // that a certificate must have: the VM's id
}

// SSH is the state of the guest's SSH server, by its files.
type SSH struct {
	Certificates bool     `json:"certificates,omitempty"` // it is configured to accept those of SSHTrust
	HostKeys     []string `json:"host_keys,omitempty"`    // in authorized_keys form, without comments
}

var authorityForm = regexp.MustCompile(`^ssh-ed25519 [A-Za-z0-9+/]{40,120}={0,2}$`)

// check refuses values that hatchd does not send: the agent writes them into a file.
func (t SSHTrust) check() error {
	if !authorityForm.MatchString(t.Authority) {
		return errors.New("authority must be ssh-ed25519 and a key in base64")
	}
	if !instanceForm.MatchString(t.Principal) {
		return errors.New("principal must be 1 to 64 letters, digits, dots, hyphens and underscores, and begin with a letter or digit")
	}
	return nil
}

// TrustSSH has the guest's SSH server accept certificates. It ignores that an agent does
// not know the operation.
func (c *Client) TrustSSH(ctx context.Context, trust SSHTrust) error {
	err := c.call(ctx, OpTrustSSH, trust, nil)
	if answer, ok := errors.AsType[*RemoteError](err); ok && answer.Code == CodeUnknownOp {
		return nil
	}
	return err
}

// SSHTrustHandler configures the guest's SSH server. A [Handler] that does not implement
// it does not know the operation.
type SSHTrustHandler interface {
	TrustSSH(trust SSHTrust) error
}

// trustSSH serves OpTrustSSH. It reports whether it served the request.
func (r request) trustSSH(asked Request) bool {
	handler, ok := r.handler.(SSHTrustHandler)
	if !ok || asked.Op != OpTrustSSH {
		return false
	}
	var trust SSHTrust
	if err := json.Unmarshal(asked.Args, &trust); err != nil || trust.check() != nil {
		sendError(r.stream, CodeInvalid, "invalid arguments of ssh.trust")
		return true
	}
	if err := handler.TrustSSH(trust); err != nil {
		sendFailure(r.stream, err)
		return true
	}
	_ = sendResult(r.stream, nil)
	return true
}
