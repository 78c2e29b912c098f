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

// OpReidentify gives a clone its identity: ReidentifyArgs → Self, once the guest has it.
// It takes seconds. hatchd may repeat it: a connection may be lost before the answer. Its
// name cannot change, because the agents of sleeping VMs know it.
const OpReidentify Op = "recast"

// ReidentifyArgs are the arguments of OpReidentify.
type ReidentifyArgs struct {
	WokenArgs // the clone's memory is from a snapshot, too
	Identity
}

// Identity is what distinguishes a clone from its original.
type Identity struct {
	// CloneID is unique to this clone, 1 to 64 characters: an agent that gets the same
	// one again has already changed its identity. All other fields may equal the
	// original's.
	CloneID string `json:"birth"`

	InstanceID string `json:"instance_id"`   // for cloud-init, 1 to 64 characters
	Hostname   string `json:"hostname"`      // at most 64 characters
	NIC        *NIC   `json:"nic,omitempty"` // nil without a network

	// CloudInit runs cloud-init for the new instance, in the background, with the new
	// seed disk. Otherwise cloud-init does nothing: its records state that it has set up
	// this instance already.
	CloudInit bool `json:"cloud_init,omitempty"`

	// SSHKeys without CloudInit has cloud-init add only the SSH keys on the seed disk to
	// the image's default user, in the background.
	SSHKeys bool `json:"ssh_keys,omitempty"`

	// SSH replaces what the original trusts for logins; nil: the clone trusts nothing.
	SSH *SSHTrust `json:"ssh,omitempty"`
}

// NIC is the configuration of the guest's network interface.
type NIC struct {
	MAC     string       `json:"mac"`
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway"` // the zero value means no default route
}

// Self is the identity that a guest has, by its kernel and its files.
type Self struct {
	Hostname  string       `json:"hostname"`
	MAC       string       `json:"mac,omitempty"`
	Address   netip.Prefix `json:"address"`              // the zero value without a network
	MachineID string       `json:"machine_id,omitempty"` // "" if the image has none
}

var (
	cloneIDForm  = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)
	instanceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	hostnameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
)

// check refuses values that hatchd does not send: the agent writes them into files.
func (i Identity) check() error {
	if !cloneIDForm.MatchString(i.CloneID) {
		return errors.New("birth must be 1 to 64 letters and digits")
	}
	if !instanceForm.MatchString(i.InstanceID) {
		return errors.New("instance_id must be 1 to 64 letters, digits, dots, hyphens and underscores, and begin with a letter or digit")
	}
	if !hostnameForm.MatchString(i.Hostname) {
		return errors.New("hostname must be 1 to 64 letters, digits, dots and hyphens, with a letter or digit at both ends")
	}
	if i.SSH != nil {
		if err := i.SSH.check(); err != nil {
			return err
		}
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

// Reidentify gives a clone its identity, the time and a seed, and returns the identity
// that the guest has afterwards.
func (c *Client) Reidentify(ctx context.Context, as Identity, seed []byte) (Self, error) {
	var self Self
	args := ReidentifyArgs{WokenArgs: WokenArgs{UnixNanos: time.Now().UnixNano(), Seed: seed}, Identity: as}
	err := c.call(ctx, OpReidentify, args, &self)
	return self, err
}

// ReidentifyHandler reidentifies a clone. A [Handler] that does not implement it does not
// know the operation.
type ReidentifyHandler interface {
	// Reidentify does the same as Woken, and then changes the identity. It may be called
	// again, and concurrently.
	Reidentify(ctx context.Context, now time.Time, seed []byte, as Identity) (Self, error)
}

// reidentify serves OpReidentify. It reports whether it served the request.
func (r request) reidentify(ctx context.Context, asked Request) bool {
	handler, ok := r.handler.(ReidentifyHandler)
	if !ok || asked.Op != OpReidentify {
		return false
	}
	args, err := parseReidentify(asked.Args)
	if err != nil {
		sendError(r.stream, CodeInvalid, fmt.Sprintf("invalid identity: %v", err))
		return true
	}
	self, err := handler.Reidentify(ctx, time.Unix(0, args.UnixNanos), args.Seed, args.Identity)
	if err != nil {
		sendFailure(r.stream, err)
		return true
	}
	_ = sendResult(r.stream, self)
	return true
}

func parseReidentify(raw json.RawMessage) (ReidentifyArgs, error) {
	var args ReidentifyArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return ReidentifyArgs{}, err
	}
	if err := args.WokenArgs.check(); err != nil {
		return ReidentifyArgs{}, err
	}
	return args, args.Identity.check()
}
