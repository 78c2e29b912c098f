// Package clone takes snapshots of VMs, restores VMs to them, and clones VMs
// from them: forks, new VMs from a snapshot, and new VMs from the warm pool.
//
// It does not list, bound or delete snapshots; that is internal/snapshot. The
// steps by which a clone gets its machine and identity are in
// internal/vm/transition. Start at [Service.Fork]; take.go takes snapshots,
// restore.go restores them, warm.go chooses between a clone and a boot.
package clone

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/capacity"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/power"
	"github.com/hatchvm/hatch/internal/vm/transition"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Store is what clones need of the database.
type Store interface {
	vm.Creator
}

// Config is what the service needs. All fields but Warm are required.
type Config struct {
	Store         Store
	Runner        *operation.Runner
	Engine        *transition.Engine
	Live          *live.Registry
	Power         *power.Service
	Capacity      *capacity.Service
	Snapshots     *snapshot.Service
	SnapshotFiles snapshot.Files
	Warm          vm.WarmPool // nil: every new VM boots
	Drivers       map[string]vmm.Driver
	Pools         network.Pools
	Check         func(vm.VM, vm.CreateRequest) error
	IsFull        func(error) bool // reports whether an error says that a disk is full
	Log           *slog.Logger
}

// How much is done at a time for one user. One more slot is for others.
const (
	clonesAtOnce = 4
	readsAtOnce  = 2 // of whole snapshots
)

// Service takes snapshots and makes clones.
type Service struct {
	Config

	// Lock order: a clone slot, then the slot of a start, then a read slot.
	cloneSlots *operation.Slots
	readSlots  *operation.Slots
}

// New returns a service.
func New(cfg Config) *Service {
	closing := cfg.Runner.Closing()
	return &Service{
		Config:     cfg,
		cloneSlots: operation.NewSlots(clonesAtOnce+1, clonesAtOnce, closing),
		readSlots:  operation.NewSlots(readsAtOnce+1, readsAtOnce, closing),
	}
}

// origin returns what a snapshot records of a VM.
func (s *Service) origin(ctx context.Context, v vm.VM) (snapshot.Origin, error) {
	initramfs, err := s.Engine.BootFiles.Initramfs(ctx, v.Boot)
	v.Spec.Hostname = v.Hostname()
	return snapshot.Origin{
		Spec: v.Spec, InstanceID: v.InstanceID(), Initramfs: filepath.Base(initramfs),
		MAC: v.Lease.MAC, Address: v.Lease.Address,
	}, err
}

// machineHere returns what a driver would save machines as on this host.
func (s *Service) machineHere(driver string) snapshot.Machine {
	m := snapshot.Machine{Driver: driver}
	if d, ok := s.Drivers[driver]; ok {
		info := d.Info()
		m.Version, m.Accel, m.CPU = info.Version, info.Accel, info.CPU
	}
	return m
}

// machineOf returns what the VM's machine is saved as. Its VMM may be of an earlier
// version than the installed one.
func (s *Service) machineOf(v vm.VM) snapshot.Machine {
	m := s.machineHere(v.Driver)
	if v.Machine != nil && v.Machine.Version != "" {
		m.Version = v.Machine.Version
	}
	return m
}

// Fits returns why a snapshot's machine cannot be woken on this host as it is
// now, or nil. It does not read the files of a durable one, but checks that they
// exist. Errors: errs.Conflict with code snapshot_unusable.
func (s *Service) Fits(snap snapshot.Snapshot) error {
	here := s.machineHere(snap.Machine.Driver)
	if snap.Machine.Version != here.Version {
		return snapshot.Unusable(snap, vmm.NeedsVersion(snap.Machine.Driver, snap.Machine.Version, here.Version))
	}
	for _, pair := range []struct{ what, saved, now string }{
		{"the acceleration", snap.Machine.Accel, here.Accel},
		{"the host's processor", snap.Machine.CPU, here.CPU},
	} {
		if pair.saved != pair.now {
			return snapshot.Unusable(snap, fmt.Sprintf("%s was %q and is %q now", pair.what, pair.saved, pair.now))
		}
	}
	if !s.Engine.BootFiles.Unchanged(snap.VM.Boot) {
		return snapshot.Unusable(snap, "its kernel or root file system has changed")
	}
	if !snap.Durable { // not all of its files exist yet, and an ephemeral one has fewer
		return nil
	}
	return s.SnapshotFiles.Present(snap.ID)
}

// verify reads all of a snapshot and compares it with its checksums.
// Errors: errs.Conflict with code snapshot_unusable; those of Slots.Acquire.
func (s *Service) verify(ctx context.Context, snap snapshot.Snapshot) error {
	release, err := s.readSlots.Acquire(ctx, snap.OwnerID)
	if err != nil {
		return err
	}
	defer release()
	return s.SnapshotFiles.Verify(ctx, snap.ID, snap.Sums)
}

// pin returns the snapshot with this id or name, which a request names, and keeps
// it from being deleted until release is called.
// Errors: errs.Invalid with field snapshot_id; errs.Conflict with code snapshot_in_use.
func (s *Service) pin(ctx context.Context, ownerID, idOrName string) (_ snapshot.Snapshot, release func(), err error) {
	snap, release, err := s.Snapshots.PinNamed(ctx, access.Owner(ownerID), idOrName)
	switch {
	case errs.Is(err, errs.NotFound):
		return snap, nil, errs.InvalidField("snapshot_id", "there is no snapshot %q", idOrName).
			WithHint("GET /snapshots lists them").WithCause(err)
	case err != nil:
		return snap, nil, err
	case !snap.Durable:
		release()
		return snap, nil, errs.New(errs.Conflict, "snapshot_in_use", "snapshot %s is still being taken", snap.ID).
			WithHint("try again in a moment")
	}
	return snap, release, nil
}
