package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
)

// reidentifyTimeout is the timeout of one attempt to reidentify a clone: generating keys
// takes long in an emulated guest on a busy host.
const reidentifyTimeout = 2 * time.Minute

// maxReidentifyText limits the agent's error message, in bytes.
const maxReidentifyText = 1024

// clone is a guest that has to confirm its new identity.
type clone struct {
	log *slog.Logger
	as  vm.Identity
	ssh *wire.SSHTrust
	id  string // unique to this clone

	mu      sync.Mutex
	done    bool          // the guest has confirmed
	failure error         // of the last attempt that the guest answered
	changed chan struct{} // closed and replaced at each change
}

func newClone(log *slog.Logger, as vm.Identity, trust *wire.SSHTrust) *clone {
	return &clone{log: log, as: as, ssh: trust, id: rand.Text(), changed: make(chan struct{})}
}

// result returns the result of the last attempt that the guest answered.
func (c *clone) result() (done bool, changed <-chan struct{}, failure error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done, c.changed, c.failure
}

func (c *clone) setResult(failure error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.failure = failure == nil, failure
	close(c.changed)
	c.changed = make(chan struct{})
}

// confirmed waits for the result of an attempt, until closed or ctx is done.
func (c *clone) confirmed(ctx context.Context, closed <-chan struct{}) error {
	for {
		done, changed, failure := c.result()
		if done || failure != nil {
			return failure
		}
		select {
		case <-changed:
		case <-closed:
			return sessionClosed()
		case <-ctx.Done():
			return unavailable("the clone has not confirmed its identity in time").WithCause(ctx.Err())
		}
	}
}

// reidentify sends the clone's identity to the agent, unless one has confirmed it.
func (c *clone) reidentify(ctx context.Context, client *wire.Client) error {
	if done, _, _ := c.result(); done {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reidentifyTimeout)
	defer cancel()
	began := time.Now()
	self, err := client.Reidentify(ctx, c.identity(), newSeed())
	var refused *wire.RemoteError
	switch {
	case err == nil:
		err = compare(c.as, self)
	case errors.As(err, &refused):
		err = requestError(refused, func(answer *wire.RemoteError) error {
			return reidentifyFailed(printable(answer.Message, maxReidentifyText)).WithCause(answer)
		})
	default:
		return err // the guest has not answered
	}
	c.setResult(err)
	if err == nil {
		c.log.Info("clone confirmed its identity", logkey.Hostname, self.Hostname, logkey.MAC, c.as.MAC.String(), "address", c.as.Address,
			"machine_id", printable(self.MachineID, maxVersion), logkey.Took, time.Since(began))
	}
	return err
}

func (c *clone) identity() wire.Identity {
	id := wire.Identity{
		CloneID: c.id, InstanceID: c.as.InstanceID, Hostname: c.as.Hostname,
		CloudInit: c.as.Setup == vm.SetupAnew, SSHKeys: c.as.Setup == vm.SetupKeys, SSH: c.ssh,
	}
	if c.as.MAC != nil {
		id.NIC = &wire.NIC{MAC: c.as.MAC.String(), Address: c.as.Address, Gateway: c.as.Gateway}
	}
	return id
}

func reidentifyFailed(reason string) *errs.Error {
	return errs.New(errs.Internal, "reidentify_failed", "cannot reidentify the clone: %s", reason)
}

// compare returns an error unless self is the identity.
func compare(as vm.Identity, self wire.Self) error {
	if self.Hostname != as.Hostname {
		return reidentifyFailed(fmt.Sprintf("its hostname is %q instead of %q", printable(self.Hostname, maxVersion), as.Hostname))
	}
	if as.MAC == nil {
		return nil
	}
	if mac, err := net.ParseMAC(self.MAC); err != nil || !bytes.Equal(mac, as.MAC) {
		return reidentifyFailed(fmt.Sprintf("its MAC is %q instead of %q", printable(self.MAC, maxVersion), as.MAC))
	}
	if self.Address != as.Address {
		return reidentifyFailed(fmt.Sprintf("its address is %s instead of %s", self.Address, as.Address))
	}
	return nil
}
