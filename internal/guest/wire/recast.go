package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"time"
)

// OpRecast tells the agent that its guest is a copy of another, and who it is
// now: RecastArgs → Self, once the guest has become that. It takes seconds. It
// may be asked again, for a connection may be lost before the answer.
const OpRecast Op = "recast"

// RecastArgs are the arguments of OpRecast.
type RecastArgs struct {
	WokenArgs // first of all a copy is told what any woken guest is
	Identity
}

// Identity is what makes a copied guest itself.
type Identity struct {
	// Birth is a word that no other copying has, at most 64 characters: a guest
	// that has become itself, and is told the same one again, is done. All else may
	// be as it was for the guest that this one was copied from.
	Birth string `json:"birth"`

	InstanceID string `json:"instance_id"`   // of its VM, 1 to 64 characters
	Hostname   string `json:"hostname"`      // at most 64 characters
	NIC        *NIC   `json:"nic,omitempty"` // nil without a network

	// CloudInit has cloud-init run for the new instance, in the background,
	// with what is on the seed disk now. Without it cloud-init takes the new
	// instance for one that it has served already, as it has the original.
	CloudInit bool `json:"cloud_init,omitempty"`

	// SSHKeys, without CloudInit, has cloud-init give the SSH keys on the seed disk
	// to the image's default user, in the background, and nothing more.
	SSHKeys bool `json:"ssh_keys,omitempty"`
}

// NIC is the guest's place on its network.
type NIC struct {
	MAC     string       `json:"mac"`
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway"` // the zero value: no default route
}

// Self is who a guest says that it is, as its kernel and its files have it.
type Self struct {
	Hostname  string       `json:"hostname"`
	MAC       string       `json:"mac,omitempty"`
	Address   netip.Prefix `json:"address"`              // the zero value without a network
	MachineID string       `json:"machine_id,omitempty"` // "" in an image that has none
}

var (
	birthForm    = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)
	instanceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	hostnameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
)

// check refuses what no host of ours sends: much of it goes into files.
func (i Identity) check() error {
	if !birthForm.MatchString(i.Birth) {
		return errors.New("birth must be 1 to 64 letters and digits")
	}
	if !instanceForm.MatchString(i.InstanceID) {
		return errors.New("instance_id must be 1 to 64 letters, digits, dots, hyphens and underscores, and begin with a letter or digit")
	}
	if !hostnameForm.MatchString(i.Hostname) {
		return errors.New("hostname must be 1 to 64 letters, digits, dots and hyphens, with a letter or digit at both ends")
	}
	if i.NIC == nil {
		return nil
	}
	return i.NIC.check()
}

func (n NIC) check() error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return errors.New("nic.mac must be the MAC of one Ethernet interface")
	}
	if !n.Address.IsValid() {
		return errors.New("nic.address must be ADDRESS/BITS")
	}
	if n.Gateway.IsValid() && (!n.Address.Contains(n.Gateway) || n.Gateway == n.Address.Addr()) {
		return fmt.Errorf("nic.gateway must be another address in %s", n.Address.Masked())
	}
	return nil
}

// Recast tells the agent who its guest is now, the time, and gives it
// randomness. It returns who the guest says that it has become.
func (c *Client) Recast(ctx context.Context, as Identity, seed []byte) (Self, error) {
	var self Self
	args := RecastArgs{WokenArgs: WokenArgs{UnixNanos: time.Now().UnixNano(), Seed: seed}, Identity: as}
	err := c.call(ctx, OpRecast, args, &self)
	return self, err
}

// RecastHandler makes a copied guest itself. A Handler that is none does not
// know the operation.
type RecastHandler interface {
	// Recast does all that Woken does, and then takes the identity. It may be
	// called again, also while it is under way.
	Recast(ctx context.Context, now time.Time, seed []byte, as Identity) (Self, error)
}

// recast reports whether asked was its to serve.
func (r request) recast(ctx context.Context, asked Request) bool {
	handler, ok := r.handler.(RecastHandler)
	if !ok || asked.Op != OpRecast {
		return false
	}
	args, err := parseRecast(asked.Args)
	if err != nil {
		sendError(r.stream, CodeInvalid, fmt.Sprintf("the arguments of recast are not understood: %v", err))
		return true
	}
	self, err := handler.Recast(ctx, time.Unix(0, args.UnixNanos), args.Seed, args.Identity)
	if err != nil {
		sendFailure(r.stream, err)
		return true
	}
	_ = sendResult(r.stream, self)
	return true
}

func parseRecast(raw json.RawMessage) (RecastArgs, error) {
	var args RecastArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return RecastArgs{}, err
	}
	if err := args.WokenArgs.check(); err != nil {
		return RecastArgs{}, err
	}
	return args, args.Identity.check()
}
