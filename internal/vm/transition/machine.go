package transition

import (
	"context"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

func (e *Engine) launch(ctx context.Context, r *Run) error {
	spec, err := e.startSpec(ctx, r)
	if err != nil {
		return err
	}
	r.machine, err = e.Drivers[r.VM.Driver].Start(ctx, spec)
	return err
}

func (e *Engine) wakeMachine(ctx context.Context, r *Run) error {
	spec, err := e.startSpec(ctx, r)
	if err != nil {
		return err
	}
	r.machine, err = e.Drivers[r.VM.Driver].Wake(ctx, spec, e.Memories.Dir(r.VM.ID))
	return err
}

func (e *Engine) cloneMachine(ctx context.Context, r *Run, from Source) error {
	spec, err := e.startSpec(ctx, r)
	if err != nil {
		return err
	}
	prepare := func() error { return e.Memories.Prepare(r.VM.ID, 0) } // the memory stays in RAM
	if err := e.Evictor.EvictFor(ctx, r.VM.OwnerID, prepare); err != nil {
		return err
	}
	dir := e.Memories.Dir(r.VM.ID)
	if err := vmm.AdaptSaved(e.Snapshots.Dir(from.Snapshot.ID), dir, spec); err != nil {
		return BlameSnapshot(from.Snapshot, err)
	}
	if spec.Base, err = from.Base(); err != nil {
		return err
	}
	driver := e.Drivers[r.VM.Driver]
	if driver.Info().Capabilities.Base {
		if r.base, err = vmm.SharedOf(spec.Base); err != nil {
			return err
		}
	}
	r.machine, err = driver.Wake(ctx, spec, dir)
	return BlameSnapshot(from.Snapshot, err)
}

// BlameSnapshot turns a saved_unusable error of a driver into snapshot_unusable:
// the snapshot is at fault, not the VM that is made from it.
func BlameSnapshot(snap snapshot.Snapshot, err error) error {
	if !errs.HasCode(err, "saved_unusable") {
		return err
	}
	return snapshot.Unusable(snap, errs.Public(err)).WithCause(err)
}

func (e *Engine) kill(ctx context.Context, r *Run) {
	if r.machine == nil {
		return
	}
	if err := e.End(ctx, r.machine); err != nil {
		r.Stuck = true
		e.Log.Error("cannot end the VMM of a failed start", logkey.VM, r.VM.ID, logkey.Error, err)
	}
	_ = r.machine.Close()
}

func (e *Engine) connect(_ context.Context, r *Run) (err error) {
	r.Live, err = e.Live.Join(r.VM.ID, r.machine, e.Guests.Connect)
	return err
}

func (e *Engine) rejoin(_ context.Context, r *Run) (err error) {
	r.Live, err = e.Live.Join(r.VM.ID, r.machine, e.Guests.Rejoin)
	return err
}

func (e *Engine) disconnect(_ context.Context, r *Run) {
	if r.Live != nil { // a failed Join has closed what it opened
		e.Live.Remove(r.VM.ID, r.Live)
		e.Live.Disconnect(r.VM.ID, r.Live)
	}
}

// confirmTimeout bounds the wait until a clone has its own identity. A guest
// that makes SSH keys on a busy host that emulates it needs long.
const confirmTimeout = 2 * time.Minute

// reidentify lets the clone's CPUs run and waits until its guest has confirmed its
// own identity. Until it has its own MAC and address, which it takes last, its
// link drops all of its frames, DHCP's included: they bear the original's.
func (e *Engine) reidentify(ctx context.Context, r *Run, from Source) error {
	as := e.identity(r.VM, from.Setup)
	m, err := e.Live.Join(r.VM.ID, r.machine, func(id string, dial vm.DialAgent, observe vm.ObserveReport) vm.Session {
		return e.Guests.Reidentify(id, dial, observe, as)
	})
	if err != nil {
		return err
	}
	r.Live = m
	if err := r.machine.Resume(ctx); err != nil {
		return err
	}
	if err := confirmed(ctx, m); err != nil {
		return errs.New(errs.Unavailable, "copy_not_confirmed",
			"a clone did not confirm its new identity, and was destroyed: %s", errs.Public(err)).
			WithHint("try again; on a busy host a guest may need too long to make its keys, and one whose agent does not answer cannot be cloned").WithCause(err)
	}
	return nil
}

// confirmed waits for the guest's confirmation, or for the machine's end.
func confirmed(ctx context.Context, m *live.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- m.Guest.Confirmed(ctx) }()
	select {
	case <-m.Exited():
		cancel()
		return <-result
	case err := <-result:
		return err
	}
}

func (e *Engine) identity(v vm.VM, setup vm.Setup) vm.Identity {
	as := vm.Identity{InstanceID: v.InstanceID(), Hostname: v.Hostname(), Setup: setup}
	if v.EnableNetwork {
		as.MAC, as.Gateway = v.Lease.MAC, e.Subnet.Gateway
		as.Address = netip.PrefixFrom(v.Lease.Address, e.Subnet.Prefix.Bits())
	}
	return as
}
