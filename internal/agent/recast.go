package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/agent/identity"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// copied is a guest that is a copy; [identity.Guest] is.
type copied interface {
	Take(ctx context.Context, as wire.Identity) (wire.Self, error)
	Settle(ctx context.Context, as wire.Identity)
}

// recasting makes a copied guest itself, one request at a time.
type recasting struct {
	guest copied
	turn  chan struct{}      // held by the request that is at work
	taken chan wire.Identity // what the guest has become, to settle in

	// For the one whose turn it is.
	done string // the birth after which the guest has become itself
	self wire.Self
}

func newRecasting(guest copied) *recasting {
	return &recasting{guest: guest, turn: make(chan struct{}, 1), taken: make(chan wire.Identity, 1)}
}

// Recast implements [wire.RecastHandler]. The clock and the randomness come
// first: the keys and ids made after that are nobody else's.
func (a *Agent) Recast(ctx context.Context, now time.Time, seed []byte, as wire.Identity) (wire.Self, error) {
	if err := a.Woken(now, seed); err != nil {
		return wire.Self{}, err
	}
	return a.recast(ctx, as)
}

// recast does it once for each birth: a host that has lost the answer asks again.
// A copy of a copy was born once more, with all that this one remembers.
func (a *Agent) recast(ctx context.Context, as wire.Identity) (wire.Self, error) {
	r := a.recasting
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return wire.Self{}, ctx.Err()
	}
	if r.done == as.Birth {
		return r.self, nil
	}
	if st := cloudInit("/"); !identity.HasCloudInit("/") || st.Status == wire.CloudInitDisabled {
		as.CloudInit, as.SSHKeys = false, false
	}
	began := time.Now()
	self, err := r.guest.Take(ctx, as)
	a.log.Info("the guest is a copy and becomes itself", "instance", as.InstanceID, "hostname", as.Hostname, "took", time.Since(began), "err", err)
	if err != nil {
		return wire.Self{}, fmt.Errorf("cannot change %w", err)
	}
	r.done, r.self = as.Birth, self
	a.postAddresses() // before the host asks for them
	if as.CloudInit || as.SSHKeys {
		a.status.postCloudInit(cloudInit("/"))
	}
	select {
	case r.taken <- as:
	default: // it settles in as another still
	}
	return self, nil
}

// settle does what could wait, each time that the guest has become itself, until
// ctx is done.
func (a *Agent) settle(ctx context.Context) {
	for {
		select {
		case as := <-a.recasting.taken:
			a.recasting.guest.Settle(ctx, as)
		case <-ctx.Done():
			return
		}
	}
}
