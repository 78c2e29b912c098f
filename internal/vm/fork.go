package vm

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// MaxCopies is how many VMs one request may make of a snapshot or of a VM.
const MaxCopies = 64

// What is done at a time for one owner, over all requests. One more is for others.
const (
	copiesAtOnce   = 4
	readingsAtOnce = 2 // of whole snapshots
)

// CopyRequest is what the VMs shall have that are made of a snapshot or of a
// running VM. All else they have from there.
type CopyRequest struct {
	Count       int               // 1 to MaxCopies
	Name        string            // "" for none; with more than one, "-1", "-2"… is added
	Labels      map[string]string // nil: those of the VM it is a copy of
	UserData    *string           // nil: what the guest has stays as it is
	SSHKeys     []string          // nil: likewise
	Idempotency Idempotency
}

// Copies are the VMs that one request has made.
type Copies struct {
	VMs    []VM
	Failed []error // why each of the others was not made; nothing is left of them
}

// Fork makes new VMs that go on from where this one is, and returns once they
// run as themselves. The VM goes on; its guest stands while its memory and disk
// are copied once, whatever the count.
//
// Errors: errs.Invalid names the field; errs.Conflict when the VM has no memory
// to copy; errs.Exhausted; errs.Unsupported; and, when not one could be made, why
// the first was not. When ctx ends before, errs.Unavailable with code
// still_working: they go on being made.
func (s *Service) Fork(ctx context.Context, owner, id string, req CopyRequest) (Copies, error) {
	if err := checkCopies(req); err != nil {
		return Copies{}, err
	}
	if v, found, err := s.createdBefore(ctx, owner, req.Idempotency); found || err != nil {
		return Copies{VMs: []VM{v}}, err
	}
	unlock, err := s.claim(ctx, owner, id)
	if err != nil {
		return Copies{}, err
	}
	return detached(ctx, s, func(ctx context.Context) (Copies, error) {
		one, reserved, err := s.captureToFork(ctx, owner, id, unlock, req)
		if err != nil {
			return Copies{}, err
		}
		defer s.deps.Snapshots.Abandon(ctx, one)
		return s.copies(ctx, one, reserved, req)
	})
}

// captureToFork has the guest stand for no longer than it must, and not at all
// for a request that would be refused.
func (s *Service) captureToFork(ctx context.Context, owner, id string, unlock func(), req CopyRequest) (one snapshot.Snapshot, reserved reservation, err error) {
	defer unlock()
	_, err = s.perform(ctx, owner, id, "fork", func(ctx context.Context, v VM) (VM, error) {
		copyFrom, err := s.standing(ctx, v)
		if err != nil {
			return VM{}, err
		}
		memory, err := s.memoryBytes(ctx, v)
		if err != nil {
			return VM{}, err
		}
		passing, err := s.begin(ctx, v, snapshot.Snapshot{Kind: snapshot.Passing})
		if err != nil {
			return VM{}, err
		}
		one = passing
		if reserved, err = s.reserve(ctx, one, memory, req); err == nil && reserved.earlier == "" {
			err = copyFrom(ctx, one)
		}
		if err != nil {
			s.abandon(ctx, reserved)
			s.deps.Snapshots.Abandon(ctx, one)
		}
		return v, err
	})
	return one, reserved, err
}

// CreateFrom makes new VMs from a snapshot, and returns once they run as
// themselves. Errors: as Fork's, and errs.Conflict with code snapshot_unusable.
func (s *Service) CreateFrom(ctx context.Context, owner, snapshotID string, req CopyRequest) (Copies, error) {
	if err := checkCopies(req); err != nil {
		return Copies{}, err
	}
	if v, found, err := s.createdBefore(ctx, owner, req.Idempotency); found || err != nil {
		return Copies{VMs: []VM{v}}, err
	}
	one, release, err := s.holdSnapshot(ctx, owner, snapshotID)
	if err != nil {
		return Copies{}, err
	}
	return detached(ctx, s, func(ctx context.Context) (Copies, error) {
		defer release()
		if err := s.Fits(one); err != nil {
			return Copies{}, err
		}
		reserved, err := s.reserve(ctx, one, min(one.Bytes, int64(one.VM.MemMiB)<<20), req)
		if err != nil {
			return Copies{}, err
		}
		if reserved.earlier == "" {
			if err := s.verify(ctx, one); err != nil {
				s.abandon(ctx, reserved)
				return Copies{}, err
			}
		}
		return s.copies(ctx, one, reserved, req)
	})
}

func checkCopies(req CopyRequest) error {
	if req.Count < 1 || req.Count > MaxCopies {
		return errs.InvalidField("count", "%d is out of range; 1 to %d can be given", req.Count, MaxCopies)
	}
	if req.Idempotency.Key != "" && req.Count > 1 {
		return errs.InvalidField("Idempotency-Key", "it can be given for one VM only; count is %d", req.Count)
	}
	return nil
}

// verify reads all of a snapshot, in its turn.
func (s *Service) verify(ctx context.Context, one snapshot.Snapshot) error {
	done, err := s.reading.take(ctx, one.OwnerID)
	if err != nil {
		return err
	}
	defer done()
	return s.deps.SnapshotFiles.Verify(ctx, one.ID, one.Sums)
}

// copies makes them all from the same memory.
func (s *Service) copies(ctx context.Context, one snapshot.Snapshot, r reservation, req CopyRequest) (Copies, error) {
	if r.earlier != "" {
		bounded, cancel := context.WithTimeout(ctx, MaxWait)
		defer cancel()
		v, err := s.await(bounded, one.OwnerID, r.earlier, begun)
		if errs.Is(err, errs.NotFound) {
			err = errs.New(errs.Unavailable, "earlier_failed", "an earlier request with this Idempotency-Key was still under way, and has failed").
				WithHint("send it again").WithCause(err)
		}
		return sortOut([]VM{v}, []error{err})
	}
	var base *os.File
	open := sync.OnceValues(func() (_ *os.File, err error) {
		base, err = s.openBase(ctx, one)
		return base, err
	})
	made, faults := make([]VM, len(r.vms)), make([]error, len(r.vms))
	var each sync.WaitGroup
	for i, v := range r.vms {
		each.Go(func() {
			defer r.unlock[v.ID]()
			made[i], faults[i] = s.copy(ctx, &birth{vm: v, from: one, base: open, setup: req.setup()})
		})
	}
	each.Wait()
	if base != nil {
		_ = base.Close()
	}
	r.release() // those that are VMs now have it themselves
	return sortOut(made, faults)
}

// openBase reads the memory of a snapshot, in its turn.
func (s *Service) openBase(ctx context.Context, one snapshot.Snapshot) (*os.File, error) {
	done, err := s.reading.take(ctx, one.OwnerID)
	if err != nil {
		return nil, err
	}
	defer done()
	return s.deps.SnapshotFiles.Base(ctx, one.ID)
}

func sortOut(made []VM, faults []error) (Copies, error) {
	var c Copies
	for i, err := range faults {
		if err != nil {
			c.Failed = append(c.Failed, err)
		} else {
			c.VMs = append(c.VMs, made[i])
		}
	}
	if len(c.VMs) == 0 {
		return Copies{}, c.Failed[0]
	}
	return c, nil
}

// birth is a VM on its way from a snapshot to a life of its own.
type birth struct {
	vm    VM
	from  snapshot.Snapshot
	base  func() (*os.File, error) // its memory, which is read once a VM has got its place on the host
	setup Setup
}

// copySteps are what makes a VM from a snapshot, in order. Until the row step it
// is no VM that anybody may count on: what is left of it by a daemon that dies
// here is removed by the next one.
func (s *Service) copySteps(from *birth) []step {
	return []step{
		{"files", func(ctx context.Context, b *boot) error { return s.provisionCopy(ctx, b, from) }, s.unprovision},
		{"memory", s.makeMemory, s.releaseMemory},
		{"network", s.attach, s.detachNetwork},
		{"forward", s.openForward, s.closeForward},
		{"machine", func(ctx context.Context, b *boot) error { return s.wakeCopy(ctx, b, from) }, s.kill},
		{"guest", func(ctx context.Context, b *boot) error { return s.recast(ctx, b, from) }, s.disconnect},
		{"row", s.record, nil},
	}
}

// copy makes one VM, in its turn. On error nothing is left of it.
func (s *Service) copy(ctx context.Context, from *birth) (VM, error) {
	return s.told(ctx, from.vm, "create", func(ctx context.Context, v VM) (VM, error) {
		done, err := s.copying.take(ctx, v.OwnerID)
		if err != nil {
			s.forget(ctx, v.ID)
			return VM{}, err
		}
		defer done()
		return s.raise(ctx, v, from)
	})
}

func (s *Service) raise(ctx context.Context, v VM, from *birth) (VM, error) {
	b := &boot{vm: v, fresh: true}
	if failed, err := s.becomeCopy(ctx, b, from); err != nil {
		return s.copyFailed(ctx, b, failed, err)
	}
	return b.vm, nil
}

// becomeCopy makes the VM from a snapshot, or nothing; failed is the step that
// could not be done.
func (s *Service) becomeCopy(ctx context.Context, b *boot, from *birth) (failed string, err error) {
	began := time.Now()
	took, failed, err := s.take(ctx, s.copySteps(from), b)
	if err != nil {
		return failed, err
	}
	s.watch(b.vm.ID, b.in)
	if err := s.deps.Memories.Forget(b.vm.ID); err != nil {
		s.deps.Log.Error("cannot remove what a copy was woken from", "vm", b.vm.ID, "err", err)
	}
	s.deps.Log.Info("vm made from a snapshot", "vm", b.vm.ID, "snapshot", from.from.ID, "took", time.Since(began), "steps", took)
	b.vm.Took = took
	return "", nil
}

// copyFailed leaves nothing of the VM, unless its VMM could not be ended: then it
// is there to be deleted.
func (s *Service) copyFailed(ctx context.Context, b *boot, stepName string, cause error) (VM, error) {
	if b.stuck {
		return s.startFailed(ctx, b, stepName, cause)
	}
	s.deps.Log.Warn("vm could not be made from a snapshot", "vm", b.vm.ID, "step", stepName, "err", cause)
	s.forget(ctx, b.vm.ID)
	return VM{}, answer(cause, errs.New(errs.Internal, "copy_failed", "cannot make a VM from the snapshot: the %s step failed", stepName))
}

func (s *Service) provisionCopy(ctx context.Context, b *boot, from *birth) error {
	return s.withRoom(ctx, b.vm.OwnerID, func() error {
		return s.deps.Files.ProvisionFrom(ctx, b.vm, func(ctx context.Context, path string) error {
			return s.deps.SnapshotFiles.CopyDisk(ctx, from.from.ID, path)
		})
	})
}

func (s *Service) wakeCopy(ctx context.Context, b *boot, from *birth) error {
	spec, err := s.spec(ctx, b)
	if err != nil {
		return err
	}
	prepare := func() error { return s.deps.Memories.Prepare(b.vm.ID, 0) } // its memory stays in RAM
	if err := s.withRoom(ctx, b.vm.OwnerID, prepare); err != nil {
		return err
	}
	dir := s.deps.Memories.Dir(b.vm.ID)
	if err := vmm.AdaptSaved(s.deps.SnapshotFiles.Dir(from.from.ID), dir, spec); err != nil {
		return misfit(from.from, err)
	}
	if spec.Base, err = from.base(); err != nil {
		return err
	}
	driver := s.deps.Drivers[b.vm.Driver]
	if driver.Info().Capabilities.Base {
		if b.base, err = vmm.SharedOf(spec.Base); err != nil {
			return err
		}
	}
	b.machine, err = driver.Wake(ctx, spec, dir)
	return misfit(from.from, err)
}

// recastPatience bounds the wait for a copied guest to say that it is itself. One
// that makes keys, on a busy host that emulates it, takes long.
const recastPatience = 2 * time.Minute

// recast lets the guest run and waits until it has become itself. Until it has
// its own MAC and address, the last that it takes, its link lets nothing of it
// out, DHCP neither: its frames bear the name of another.
func (s *Service) recast(ctx context.Context, b *boot, from *birth) error {
	as := s.identity(b.vm, from.setup)
	in, err := s.join(b.vm.ID, b.machine, func(id string, dial func(context.Context) (net.Conn, error), observe func(*GuestReport)) Guest {
		return s.deps.Guests.Recast(id, dial, observe, as)
	})
	if err != nil {
		return err
	}
	b.in = in
	s.hold(b.vm.ID, in)
	if err := b.machine.Resume(ctx); err != nil {
		return err
	}
	if err := s.confirmed(ctx, in); err != nil {
		return errs.New(errs.Unavailable, "copy_not_confirmed",
			"a copy of the guest has not said that it has become a machine of its own, and was destroyed: %s", publicMessage(err)).
			WithHint("try again; on a busy host a guest may need too long for keys of its own, and one whose agent does not answer cannot be copied").WithCause(err)
	}
	return nil
}

// confirmed waits for the guest's word. One that has ended gives none.
func (s *Service) confirmed(ctx context.Context, in *instance) error {
	ctx, cancel := context.WithTimeout(ctx, recastPatience)
	defer cancel()
	s.work.Go(func() {
		select {
		case <-in.machine.Exited():
			cancel()
		case <-ctx.Done():
		}
	})
	return in.guest.Confirmed(ctx)
}

func (s *Service) identity(v VM, setup Setup) Identity {
	as := Identity{InstanceID: v.InstanceID(), Hostname: v.Hostname(), Setup: setup}
	if v.EnableNetwork {
		net := s.settings.Pools.Network
		as.MAC, as.Gateway = v.Lease.MAC, net.Gateway
		as.Address = netip.PrefixFrom(v.Lease.Address, net.Prefix.Bits())
	}
	return as
}

// removeHalfCopied leaves nothing of a guest that has never been itself, nor of
// its VM, unless that could as well have booted.
func (s *Service) removeHalfCopied(ctx context.Context, v VM, h vmm.Handle) error {
	if err := s.endMachine(ctx, h); err != nil {
		reason := "hatchd ended while the VM was being made, and its VMM could not be ended"
		return errors.Join(err, s.fail(ctx, v.ID, false, reason, &h))
	}
	s.unhang(ctx, v)
	if v.Copying == OfWarm && v.Intent != WantDeleted {
		return s.abandonStart(ctx, v)
	}
	s.deps.Log.Warn("removing a vm that hatchd's end has kept from becoming itself", "vm", v.ID)
	return errors.Join(s.deps.Files.Remove(v.ID), s.deps.Store.DeleteVM(ctx, v.ID))
}
