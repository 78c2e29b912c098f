package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// recastPatience bounds one attempt to make a copy itself. A guest that makes
// keys, on a busy host that emulates it, takes long.
const recastPatience = 2 * time.Minute

// maxRecastText bounds what is kept of a guest's words, in bytes.
const maxRecastText = 1024

// Recast implements [vm.Guests].
func (g *Guests) Recast(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*vm.GuestReport), as vm.Identity) vm.Guest {
	s := g.session(vmID, dial, observe)
	s.copied = &verdict{as: as, birth: rand.Text(), changed: make(chan struct{})}
	return s.begin()
}

// verdict is whether a copied guest has become itself.
type verdict struct {
	as    vm.Identity
	birth string // tells this copying from any other

	mu        sync.Mutex
	confirmed bool
	failure   error         // of the last attempt that the guest answered
	changed   chan struct{} // closed and replaced at each change
}

func (v *verdict) read() (confirmed bool, changed <-chan struct{}, failure error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.confirmed, v.changed, v.failure
}

func (v *verdict) settle(failure error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.confirmed, v.failure = failure == nil, failure
	close(v.changed)
	v.changed = make(chan struct{})
}

// Confirmed implements [vm.Guest].
func (s *session) Confirmed(ctx context.Context) error {
	if s.copied == nil {
		return nil
	}
	for {
		confirmed, changed, failure := s.copied.read()
		if confirmed || failure != nil {
			return failure
		}
		select {
		case <-changed:
		case <-s.done:
			return unavailable("the session with the guest's agent is closed")
		case <-ctx.Done():
			return unavailable("the copied guest has not taken its own identity in time").WithCause(ctx.Err())
		}
	}
}

// recast tells an agent who its guest is now, until one has confirmed.
func (s *session) recast(ctx context.Context, client *wire.Client) error {
	if confirmed, _, _ := s.copied.read(); confirmed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, recastPatience)
	defer cancel()
	began := time.Now()
	self, err := client.Recast(ctx, s.copied.identity(), freshSeed())
	var answer *wire.RemoteError
	switch {
	case err == nil:
		err = disagreement(s.copied.as, self)
	case errors.As(err, &answer):
		err = refusedRecast(answer)
	default:
		return err // the guest has not answered
	}
	s.copied.settle(err)
	if err == nil {
		s.log.Info("the copied guest is itself", "hostname", self.Hostname, "mac", s.copied.as.MAC.String(), "address", s.copied.as.Address,
			"machine_id", printable(self.MachineID, maxVersion), "took", time.Since(began))
	}
	return err
}

func (v *verdict) identity() wire.Identity {
	as := v.as
	id := wire.Identity{
		Birth: v.birth, InstanceID: as.InstanceID, Hostname: as.Hostname,
		CloudInit: as.Setup == vm.SetupAnew, SSHKeys: as.Setup == vm.SetupKeys,
	}
	if as.MAC != nil {
		id.NIC = &wire.NIC{MAC: as.MAC.String(), Address: as.Address, Gateway: as.Gateway}
	}
	return id
}

func refusedRecast(answer *wire.RemoteError) error {
	return failure(answer, func(answer *wire.RemoteError) error {
		return recastFailed(printable(answer.Message, maxRecastText)).WithCause(answer)
	})
}

func recastFailed(words string) *errs.Error {
	return errs.New(errs.Internal, "recast_failed", "the copied guest could not take its own identity: %s", words)
}

// disagreement says in what the guest is not who it should be.
func disagreement(as vm.Identity, self wire.Self) error {
	if self.Hostname != as.Hostname {
		return recastFailed(fmt.Sprintf("its hostname is %q instead of %q", printable(self.Hostname, maxVersion), as.Hostname))
	}
	if as.MAC == nil {
		return nil
	}
	if mac, err := net.ParseMAC(self.MAC); err != nil || !bytes.Equal(mac, as.MAC) {
		return recastFailed(fmt.Sprintf("its MAC is %q instead of %q", printable(self.MAC, maxVersion), as.MAC))
	}
	if self.Address != as.Address {
		return recastFailed(fmt.Sprintf("its address is %s instead of %s", self.Address, as.Address))
	}
	return nil
}
