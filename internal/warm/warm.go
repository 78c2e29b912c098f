// Package warm is the warm pool: snapshots of booted guests that new VMs are
// cloned from instead of booting. It has one snapshot for each shape that was
// requested, built in the background from a VM of hatchd's own user.
//
// It decides what to build and when a snapshot is out of date. Cloning a VM from
// a snapshot is internal/vm/clone's. Start at [Service].
package warm

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// Mode says what causes a build.
type Mode string

// The modes.
const (
	Auto   Mode = "auto"   // every VM that had to boot, and requests
	Manual Mode = "manual" // requests only
	Off    Mode = "off"    // nothing: every VM boots
)

// State is the state of one shape in the pool.
type State string

// The states.
const (
	Building State = "building"
	Ready    State = "ready"
	Failed   State = "failed"
)

// Entry is one shape in the pool.
type Entry struct {
	Shape      vm.Shape
	State      State
	Reason     string // why the build, or a clone, failed
	SnapshotID string // when ready
	Bytes      int64  // on the host's disk
	At         time.Time
}

// Images knows the owners of images, and stores events about them.
type Images interface {
	// ImageOwner returns the owner of an image. Errors: errs.NotFound.
	ImageOwner(ctx context.Context, id string) (owner string, err error)
	AppendEvents(ctx context.Context, events ...event.Event) error
}

// VMs makes the VMs that snapshots are built from (lifecycle.Service).
type VMs interface {
	// CreateOfShape makes and boots a VM of hatchd's own user, and returns it
	// once it runs. With an error it returns the VM's id.
	CreateOfShape(ctx context.Context, shape vm.Shape) (vm.VM, error)
	// Wait returns the VM once the condition holds.
	Wait(ctx context.Context, scope access.Scope, id string, want vm.WaitFor) (vm.VM, error)
	// SnapshotWarm takes a snapshot of kind snapshot.Warm.
	SnapshotWarm(ctx context.Context, id string) (snapshot.Snapshot, error)
	// Delete ends a VM and removes everything of it.
	Delete(ctx context.Context, scope access.Scope, id string) error
	// List returns VMs in scope.
	List(ctx context.Context, scope access.Scope, f vm.Filter) ([]vm.VM, string, error)
	// Idle reports whether no VM is being created, started or woken, and no guest is
	// on its way to be ready. changed is closed when that may have changed.
	Idle(ctx context.Context) (idle bool, changed <-chan struct{}, err error)
	// IsCurrent reports whether a VM that is made now would boot from the same
	// files on the same VMM.
	IsCurrent(ctx context.Context, shape vm.Shape) bool
}
