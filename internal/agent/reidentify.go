package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/agent/identity"
	"github.com/hatchvm/hatch/internal/agent/sshtrust"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// guest can change its identity; [identity.Guest] implements it.
type guest interface {
	Reidentify(ctx context.Context, as wire.Identity) (wire.Self, error)
	Finish(ctx context.Context, as wire.Identity)
}

// reidentifier gives a clone its identity, one request at a time.
type reidentifier struct {
	guest    guest
	lock     chan struct{}      // held by the request that is being served
	toFinish chan wire.Identity // identities that the guest has, and has to finish

	// Guarded by lock.
	cloneID string // of the identity that the guest has; "" for none
	self    wire.Self
}

func newReidentifier(g guest) *reidentifier {
	return &reidentifier{guest: g, lock: make(chan struct{}, 1), toFinish: make(chan wire.Identity, 1)}
}

// Reidentify implements [wire.ReidentifyHandler]. It sets the clock and the seed first,
// so that the keys and ids that it makes later are unique.
func (a *Agent) Reidentify(ctx context.Context, now time.Time, seed []byte, as wire.Identity) (wire.Self, error) {
	if err := a.Woken(now, seed); err != nil {
		return wire.Self{}, err
	}
	return a.reidentify(ctx, as)
}

// reidentify changes the identity once per clone id: a hatchd that has lost the answer
// repeats the request with the same clone id. A clone of this guest also has this
// agent's memory, but gets another clone id.
func (a *Agent) reidentify(ctx context.Context, as wire.Identity) (wire.Self, error) {
	r := a.reidentifier
	select {
	case r.lock <- struct{}{}:
		defer func() { <-r.lock }()
	case <-ctx.Done():
		return wire.Self{}, ctx.Err()
	}
	if r.cloneID == as.CloneID {
		return r.self, nil
	}
	if st := cloudInit("/"); !identity.HasCloudInit("/") || st.Status == wire.CloudInitDisabled {
		as.CloudInit, as.SSHKeys = false, false
	}
	began := time.Now()
	self, err := r.guest.Reidentify(ctx, as)
	a.log.Info("clone reidentified", "instance", as.InstanceID, logkey.Hostname, as.Hostname, logkey.Took, time.Since(began), logkey.Error, err)
	if err != nil {
		return wire.Self{}, fmt.Errorf("cannot change %w", err)
	}
	r.cloneID, r.self = as.CloneID, self
	a.updateAddresses() // before the host asks for them
	a.status.setSSH(sshtrust.State("/"))
	if as.CloudInit || as.SSHKeys {
		a.status.setCloudInit(cloudInit("/"))
	}
	select {
	case r.toFinish <- as:
	default: // the previous identity is still being finished
	}
	return self, nil
}

// finishIdentities finishes each new identity of the guest, until ctx is done.
func (a *Agent) finishIdentities(ctx context.Context) {
	for {
		select {
		case as := <-a.reidentifier.toFinish:
			a.reidentifier.guest.Finish(ctx, as)
		case <-ctx.Done():
			return
		}
	}
}
