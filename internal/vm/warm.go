package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/snapshot"
)

// Shape is what two VMs must have in common for one to begin as a copy of the
// other's booted guest.
type Shape struct {
	ImageID   string
	Boot      image.Boot
	Initramfs string // changes with the agent and with what it is made from
	VCPUs     int
	MemMiB    int
	DiskMiB   int
	BootArgs  string
	Network   bool
	Machine   snapshot.Machine
}

// Key is equal for equal shapes.
func (s Shape) Key() string {
	return fmt.Sprintf("%s %s %s %s %d %d %d %q %t %+v", s.ImageID, s.Boot.Kernel.Digest, s.Boot.Rootfs.Digest, s.Initramfs,
		s.VCPUs, s.MemMiB, s.DiskMiB, s.BootArgs, s.Network, s.Machine)
}

// ShapeOf is the shape of the VM that a snapshot was taken of.
func ShapeOf(one snapshot.Snapshot) Shape {
	return Shape{
		ImageID: one.VM.ImageID, Boot: one.VM.Boot, Initramfs: one.VM.Initramfs,
		VCPUs: one.VM.VCPUs, MemMiB: one.VM.MemMiB, DiskMiB: one.VM.DiskMiB,
		BootArgs: one.VM.BootArgs, Network: one.VM.Network, Machine: one.Machine,
	}
}

// Warm supplies new VMs with guests that have booted already (internal/warm).
type Warm interface {
	// Find returns what a VM of this shape can be made from. Where that has to be
	// brought into RAM, room is asked for it first, once it counts (see
	// snapshot.Files.Bases). The caller calls Release when it is done with that.
	Find(ctx context.Context, shape Shape, room func(context.Context) error) (Warmth, bool)
	// Missed tells that a VM of this shape had to boot.
	Missed(ctx context.Context, shape Shape)
	// DropIdle gives RAM back that was used for earlier VMs, and reports whether
	// there was any. What is in use stays, by the inodes of vmm.Shared.
	DropIdle(inUse map[uint64]bool) (dropped bool)
	// EndBuild ends the VM of hatchd's own that is about to be kept booted, and
	// reports whether there was one.
	EndBuild(ctx context.Context) (ended bool)
	// Spoiled tells that what Find returned could not become a VM, and why.
	Spoiled(one snapshot.Snapshot, cause error)
}

// Warmth is a booted guest that is kept.
type Warmth struct {
	Snapshot snapshot.Snapshot
	Memory   *os.File // see vmm.Spec.Base
	Release  func()
}

func (w Warmth) memory() (*os.File, error) { return w.Memory, nil }

// shape returns the shape that the VM has, or would have if it were made now.
func (s *Service) shape(ctx context.Context, v VM) (Shape, error) {
	origin, err := s.originOf(ctx, v)
	return ShapeOf(snapshot.Snapshot{VM: origin, Machine: s.machineHere(v.Driver)}), err
}

// machineHere is what a driver would save machines as on this host.
func (s *Service) machineHere(driver string) snapshot.Machine {
	m := snapshot.Machine{Driver: driver}
	if d, ok := s.deps.Drivers[driver]; ok {
		info := d.Info()
		m.Version, m.Accel, m.CPU = info.Version, info.Accel, info.CPU
	}
	return m
}

// ShapeFor is the shape of the VM that a request asks for. Errors: Create's.
func (s *Service) ShapeFor(ctx context.Context, owner string, req CreateRequest) (Shape, error) {
	v, err := s.resolve(ctx, owner, req)
	if err != nil {
		return Shape{}, err
	}
	return s.shape(ctx, v)
}

// IsCurrent reports whether a VM that is made now would have this shape.
func (s *Service) IsCurrent(ctx context.Context, shape Shape) bool {
	if !shape.Boot.Kernel.Unchanged() || !shape.Boot.Rootfs.Unchanged() {
		return false
	}
	initramfs, err := s.deps.Images.Initramfs(ctx, shape.Boot)
	return err == nil && filepath.Base(initramfs) == shape.Initramfs && s.machineHere(shape.Machine.Driver) == shape.Machine
}

// CreateOfShape makes a VM of hatchd's own, and returns it once it runs. Its id
// comes with an error, too: what a create that failed leaves is there to be
// deleted. Errors: as Create's.
func (s *Service) CreateOfShape(ctx context.Context, shape Shape) (VM, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	vmID := id.New(IDPrefix)
	v, err := s.make(ctx, VM{
		ID: vmID, OwnerID: access.SystemID, ImageID: shape.ImageID, Boot: shape.Boot,
		Intent: WantRunning, State: Starting,
		VCPUs: shape.VCPUs, MemMiB: shape.MemMiB, DiskMiB: shape.DiskMiB, BootArgs: shape.BootArgs,
		EnableNetwork: shape.Network, Driver: shape.Machine.Driver, CreatedAt: now, UpdatedAt: now,
	}, CreateRequest{}, s.start)
	v.ID = vmID
	return v, err
}

// KeepWarm takes a snapshot of a VM of hatchd's own, to make new VMs from.
func (s *Service) KeepWarm(ctx context.Context, id string) (snapshot.Snapshot, error) {
	return s.snapshotAs(ctx, access.SystemID, id, snapshot.Snapshot{Kind: snapshot.Warm}, false)
}

// startWarm starts a new VM: from a guest that has booted, if one of its shape
// is kept, else by booting.
func (s *Service) startWarm(ctx context.Context, v VM) (VM, error) {
	if s.deps.Warm == nil {
		return s.start(ctx, v)
	}
	shape, err := s.shape(ctx, v)
	if err != nil {
		return s.start(ctx, v) // which tells of it
	}
	warmth, ok := s.deps.Warm.Find(ctx, shape, func(ctx context.Context) error { return s.checkWarmMemory(ctx, v) })
	if !ok {
		v, err = s.start(ctx, v)
		if err == nil {
			s.deps.Warm.Missed(ctx, shape)
		}
		return v, err
	}
	defer warmth.Release()
	return s.raiseWarm(ctx, v, warmth)
}

// spoils reports whether a copy failed by what it was made from: the next one
// would fail, too. A host without room says nothing of that.
func spoils(step string, cause error) bool {
	if errs.Is(cause, errs.Exhausted) || errors.Is(cause, syscall.ENOSPC) {
		return false
	}
	return step == "machine" || errs.HasCode(cause, "copy_not_confirmed") || errs.HasCode(cause, "snapshot_unusable")
}

// raiseWarm makes the VM a copy of a booted guest; when that fails, it boots.
func (s *Service) raiseWarm(ctx context.Context, v VM, warmth Warmth) (VM, error) {
	// A daemon that dies here leaves a guest that believes to be another: the next
	// one knows by this.
	marked, err := s.update(ctx, v.ID, func(v *VM) { v.Copying = OfWarm })
	if err != nil {
		return VM{}, err
	}
	b := &boot{vm: marked, fresh: true}
	failed, err := s.becomeCopy(ctx, b, &birth{vm: marked, from: warmth.Snapshot, base: warmth.memory, setup: SetupAnew})
	if err == nil {
		return b.vm, nil
	}
	if b.stuck {
		return s.startFailed(ctx, b, failed, err)
	}
	if spoils(failed, err) && ctx.Err() == nil {
		s.deps.Warm.Spoiled(warmth.Snapshot, err)
	}
	s.deps.Log.Warn("a booted guest could not become a new vm, which boots instead", "vm", v.ID, "snapshot", warmth.Snapshot.ID, "step", failed, "err", err)
	v, err = s.update(ctx, v.ID, func(v *VM) { v.Copying = "" })
	if err != nil {
		return VM{}, err
	}
	return s.start(ctx, v)
}
