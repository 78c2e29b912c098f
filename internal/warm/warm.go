// Package warm keeps guests that have booted already, so that new VMs of an
// image need not boot: one snapshot for each shape that VMs have been asked for
// in, made in the background from a VM of hatchd's own.
//
// It decides what is worth keeping and when that is out of date. How a VM is made
// from a snapshot, and how the copy becomes itself, is internal/vm's. Start at
// [Service].
package warm

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// Mode says who asks for what is kept.
type Mode string

// The modes.
const (
	Auto   Mode = "auto"   // every VM that had to boot
	Manual Mode = "manual" // people only
	Off    Mode = "off"    // nobody: every VM boots
)

// State is how far a shape has come.
type State string

// The states.
const (
	Building State = "building"
	Ready    State = "ready"
	Failed   State = "failed"
)

// Guest is a booted guest of one shape that is kept, or on its way.
type Guest struct {
	Shape      vm.Shape
	State      State
	Reason     string // why it failed, in words
	SnapshotID string // once it is ready
	Bytes      int64  // on the host's disk
	At         time.Time
}

// Images knows whose an image is.
type Images interface {
	// ImageOwner returns the owner of an image. Errors: errs.NotFound.
	ImageOwner(ctx context.Context, id string) (owner string, err error)
}

// VMs makes the VMs that are kept (vm.Service).
type VMs interface {
	// CreateOfShape makes and starts a VM of hatchd's own, and returns it once it
	// runs. Its id comes with an error, too.
	CreateOfShape(ctx context.Context, shape vm.Shape) (vm.VM, error)
	// Wait is vm.Service's.
	Wait(ctx context.Context, owner, id string, want vm.WaitFor) (vm.VM, error)
	// KeepWarm takes a snapshot of kind snapshot.Warm.
	KeepWarm(ctx context.Context, id string) (snapshot.Snapshot, error)
	// Delete is vm.Service's.
	Delete(ctx context.Context, owner, id string) error
	// List is vm.Service's.
	List(ctx context.Context, owner string, f vm.Filter) ([]vm.VM, string, error)
	// IsCurrent reports whether VMs that are made now would boot from the same
	// files on the same VMM.
	IsCurrent(ctx context.Context, shape vm.Shape) bool
}
