package vm

import (
	"context"
	"errors"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Capacity is what running and stopped VMs together may take of the host.
// Zero means: no limit.
type Capacity struct {
	MemMiB  int64 // sum over VMs that are live, and what these and hatchd share
	DiskMiB int64 // sum over all VMs

	// Bases lists the memory that hatchd holds for machines to map; nil means
	// none. It may be called inside the transaction and must be quick.
	Bases func() []vmm.Shared
}

// ErrOwnInTheWay is the cause of memory_exhausted and disk_exhausted where there
// would be room without hatchd's own VMs and without base memory that no machine maps.
var ErrOwnInTheWay = errors.New("hatchd's own VMs and idle memory take the room")

// ErrVMsInTheWay is the cause of memory_exhausted where there would be room if no other VM
// ran.
var ErrVMsInTheWay = errors.New("running VMs take the memory")

// ErrOwnersVMsInTheWay is the cause of quota_exceeded where the quota would do if no other
// VM of the owner ran.
var ErrOwnersVMsInTheWay = errors.New("the owner's running VMs use up the quota")

// Filter narrows a list. Zero fields do not narrow.
type Filter struct {
	State  State
	Labels map[string]string // with these values
	Name   string

	HasLabels []string // keys, with any value
	NotLabels []Label  // no label, or another value

	Limit int    // 1 to 1000; 0 means all
	After string // cursor, as VMs returned it with the page before; "" for the first page
}

// Label is one label of a VM.
type Label struct{ Key, Value string }

// Store keeps VMs. Each reader of it takes the part it needs.
type Store interface {
	Creator
	Leaser
	MemoryCounter
	Reader
	Lister
	Updater
	Reviser
	EventAppender
}

// Creator adds VMs.
type Creator interface {
	// CreateVM inserts v with a lease from pools, in one transaction, and
	// returns it as stored.
	//
	// Errors: errs.Conflict with code name_taken, guest_ip_taken,
	// guest_mac_taken, port_taken, port_in_use or idempotency_key_used; errs.Exhausted
	// with code addresses_exhausted, ssh_ports_exhausted, ports_exhausted, uids_exhausted,
	// memory_exhausted or disk_exhausted; errs.Forbidden with code quota_exceeded.
	CreateVM(ctx context.Context, v VM, want network.Request, pools network.Pools, limit Capacity) (stored VM, err error)

	// CreateVMs inserts several VMs, any address for each: all of them or none.
	// Errors: as CreateVM's.
	CreateVMs(ctx context.Context, vms []VM, pools network.Pools, limit Capacity) (stored []VM, err error)
}

// Leaser reserves and releases what a VM needs on the host.
type Leaser interface {
	// LeaseVM gives a VM whose lease was released a new one (the old address
	// when it is free), sets its state to starting, so that its memory counts
	// from now on, and returns the VM as stored. A whole lease is left alone, but
	// for host ports that are busy now and that the spec does not name. Errors: as CreateVM's, and errs.NotFound.
	LeaseVM(ctx context.Context, id string, pools network.Pools, limit Capacity) (VM, error)

	// ReleaseVM empties the VM's lease.
	ReleaseVM(ctx context.Context, id string) error
}

// MemoryCounter sums the memory that VMs take.
type MemoryCounter interface {
	// CheckMemory returns an error unless the memory of v, counted already or not,
	// and everything else that counts are within the limit.
	// Errors: errs.Exhausted with code memory_exhausted.
	CheckMemory(ctx context.Context, v VM, limit Capacity) error

	// SharedMemory lists what live machines share, each once.
	SharedMemory(ctx context.Context) ([]vmm.Shared, error)
}

// Reader reads one VM.
type Reader interface {
	// VM returns one VM. Errors: errs.NotFound with code vm_not_found.
	VM(ctx context.Context, scope access.Scope, id string) (VM, error)
}

// Lister reads many VMs.
type Lister interface {
	// VMs returns one page, newest first, and the cursor of the next page or "".
	// UserData is left out. Errors: errs.Invalid with code invalid_after.
	VMs(ctx context.Context, scope access.Scope, f Filter) (page []VM, next string, err error)

	// AllVMs returns all VMs of this host, of every owner, without UserData; for recovery
	// at start-up only.
	AllVMs(ctx context.Context) ([]VM, error)
}

// Updater changes and deletes VMs.
type Updater interface {
	// UpdateVM reads the VM, applies change to it and stores the result, in one
	// transaction, so that concurrent updates of different fields both hold.
	// Stored are Intent, State, StateReason, Conditions, Machine,
	// Provisioned, Sleep, Unconfirmed, SnapshotID, Autostart and StartedAt; UpdatedAt
	// is set.
	// change may run more than once and must not have side effects.
	// Errors: errs.NotFound.
	UpdateVM(ctx context.Context, id string, change func(*VM)) (VM, error)

	// DeleteVM removes the row, and with it the lease. No error if it is gone.
	DeleteVM(ctx context.Context, id string) error
}

// Reviser changes what VMs are made of.
type Reviser interface {
	// ReviseVM reads the VM, applies change to it and stores its Name, VCPUs, MemMiB and
	// the other fields of its Spec but the disk and UserData, in one transaction, unless
	// change returns an error. A VM with a lease gets host ports for the ports that it
	// publishes; those that Lease.Ports of the changed VM has are tried first. change may
	// run more than once and must not have side effects.
	// Errors: errs.NotFound; errs.Conflict with code name_taken, port_taken or
	// port_in_use; errs.Exhausted with code ports_exhausted; those of change.
	ReviseVM(ctx context.Context, scope access.Scope, id string, pools network.Pools, change func(*VM) error) (VM, error)
}

// EventAppender adds to the event log.
type EventAppender interface {
	// AppendEvents adds events that the methods above do not: they add
	// [CreatedEvent], [Changes] and [DeletedEvent] themselves, in the same
	// transaction. The cause is the context's.
	AppendEvents(ctx context.Context, events ...event.Event) error
}
