package vm

import (
	"context"
	"fmt"
	"os"

	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
)

// Shape is what two VMs must have in common for one to be cloned from the
// other's booted guest.
type Shape struct {
	machine.Shape
	Initramfs string // changes with the agent and with what it is made from
	Machine   snapshot.Machine
}

// Key is equal for equal shapes.
func (s Shape) Key() string {
	return fmt.Sprintf("%s %s %s %s %d %d %d %q %t %+v", s.ImageID, s.Boot.Kernel.Digest, s.Boot.Rootfs.Digest, s.Initramfs,
		s.VCPUs, s.MemMiB, s.DiskMiB, s.BootArgs, s.EnableNetwork, s.Machine)
}

// ShapeOf returns the shape of the VM that a snapshot was taken of.
func ShapeOf(snap snapshot.Snapshot) Shape {
	return Shape{Shape: snap.VM.Shape(), Initramfs: snap.VM.Initramfs, Machine: snap.Machine}
}

// WarmPool has snapshots of booted guests that new VMs are cloned from (internal/warm).
type WarmPool interface {
	// Find returns a snapshot that a VM of this shape can be cloned from. Where its
	// memory must be read into RAM, fits is called first, once the memory counts
	// (see snapshot.Memory.Bases). The caller calls Release when it is done.
	Find(ctx context.Context, shape Shape, fits func(context.Context) error) (WarmSnapshot, bool)
	// Missed says that a VM of this shape had to boot.
	Missed(ctx context.Context, shape Shape)
	// Spoiled says that a VM could not be cloned from what Find returned, and why.
	// The snapshot may be found again after a while.
	Spoiled(ctx context.Context, snap snapshot.Snapshot, cause error)
}

// WarmSnapshot is a snapshot of a booted guest, with its memory in RAM.
type WarmSnapshot struct {
	Snapshot snapshot.Snapshot
	Memory   *os.File // see vmm.Spec.Base
	Release  func()
}
