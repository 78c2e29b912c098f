package vm

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Pools are the ranges that leases are taken from.
type Pools struct {
	Network          network.Network
	SSHMin, SSHMax   int // host ports, both ends included
	UIDMin, UIDMax   int // user ids, both ends included
	TapPrefix        string
	IdempotencyReach time.Duration // how long a key is remembered

	// SSHBusy reports that somebody else on the host listens on a port, so
	// that it is passed over; nil means nobody does. It may be called inside
	// the transaction and must be quick.
	SSHBusy func(port int) bool
}

// Wanted is what a create asks to be reserved. Invalid or nil values mean: any.
type Wanted struct {
	Address netip.Addr
	MAC     net.HardwareAddr
}

// Idempotency ties a create to a client's key. The zero value ties nothing.
type Idempotency struct {
	Key  string
	Hash string // of the request's body
}

// Capacity is what running and stopped VMs together may take of the host.
// Zero means: no limit.
type Capacity struct {
	MemMiB  int64 // sum over VMs that are live, and what these and hatchd share
	DiskMiB int64 // sum over all VMs

	// Bases lists the memory that hatchd holds for machines to share; nil means
	// none. It may be called inside the transaction and must be quick.
	Bases func() []vmm.Shared
}

// ErrOwnInTheWay is the cause of memory_exhausted and disk_exhausted where there
// would be room without the VMs of hatchd's own and without the memory that no machine shares.
var ErrOwnInTheWay = errors.New("what hatchd keeps takes the room")

// Filter narrows a list. Zero fields do not narrow.
type Filter struct {
	State  State
	Labels map[string]string
	Name   string
	Limit  int    // 1 to 1000; 0 means all
	After  string // cursor, as VMs returned it with the page before; "" for the first page
}

// Store keeps VMs. Every method that takes an owner sees that owner's VMs only.
type Store interface {
	// CreateVM inserts v with a lease from pools, in one transaction, and
	// returns it as stored. When idem names a key that was used before with
	// the same hash, it returns that earlier VM and created = false.
	//
	// Errors: errs.Conflict with code name_taken, guest_ip_taken,
	// guest_mac_taken or idempotency_key_reused; errs.Exhausted with code
	// addresses_exhausted, ssh_ports_exhausted, uids_exhausted,
	// memory_exhausted or disk_exhausted.
	CreateVM(ctx context.Context, v VM, want Wanted, pools Pools, limit Capacity, idem Idempotency) (stored VM, created bool, err error)

	// CreateVMs does so for several, any address for each: it inserts all of them
	// or none. A key is for a single one.
	CreateVMs(ctx context.Context, vms []VM, pools Pools, limit Capacity, idem Idempotency) (stored []VM, created bool, err error)

	// VMByKey returns the VM that an earlier create with this key has made, if
	// there is one. Errors: errs.Conflict with code idempotency_key_reused.
	VMByKey(ctx context.Context, owner string, idem Idempotency, reach time.Duration) (v VM, found bool, err error)

	// LeaseVM gives a VM whose lease was released a new one (the old address
	// when it is free), sets its state to starting, so that its memory counts
	// from now on, and returns the VM as stored. A lease that is whole already
	// is left alone, but for an SSH port that is busy now. Errors as CreateVM's, and errs.NotFound.
	LeaseVM(ctx context.Context, id string, pools Pools, limit Capacity) (VM, error)

	// CheckMemory finds out whether the memory of v, be it counted already or not,
	// and all else that is counted are within the limit.
	// Errors: errs.Exhausted with code memory_exhausted.
	CheckMemory(ctx context.Context, v VM, limit Capacity) error

	// SharedMemory lists what live machines share, each once.
	SharedMemory(ctx context.Context) ([]vmm.Shared, error)

	// ReleaseVM empties the VM's lease.
	ReleaseVM(ctx context.Context, id string) error

	// VM returns one VM; an empty owner stands for every owner (the daemon's
	// own work). Errors: errs.NotFound with code vm_not_found.
	VM(ctx context.Context, owner, id string) (VM, error)

	// VMs returns one page, newest first, and the cursor of the next page or "".
	// UserData is left out. Errors: errs.Invalid with code invalid_after.
	VMs(ctx context.Context, owner string, f Filter) (page []VM, next string, err error)

	// AllVMs returns every owner's VMs; for adoption at start-up only.
	AllVMs(ctx context.Context) ([]VM, error)

	// UpdateVM reads the VM, applies change to it and stores the result, in one
	// transaction, so that concurrent updates of different fields both hold.
	// Stored are Intent, State, StateReason, Conditions, Driver, Machine,
	// Provisioned, Sleep, Copying, SnapshotID and StartedAt; UpdatedAt is set. change may run more than
	// once and must not have side effects. Errors: errs.NotFound.
	UpdateVM(ctx context.Context, id string, change func(*VM)) (VM, error)

	// DeleteVM removes the row, and with it the lease. No error if it is gone.
	DeleteVM(ctx context.Context, id string) error

	// AppendEvents adds to the log what the methods above do not: they add
	// [CreatedEvent], [Changes] and [DeletedEvent] by themselves, in the same
	// transaction. The cause is the context's.
	AppendEvents(ctx context.Context, events ...event.Event) error
}

// Images resolves image ids.
type Images interface {
	// Image returns an image the owner may use, checked to be unchanged on disk.
	// Errors: errs.NotFound with code image_not_found, errs.Conflict with code
	// image_changed.
	Image(ctx context.Context, owner, id string) (image.Image, error)

	// Initramfs returns the path of the initramfs for b, made when missing.
	Initramfs(ctx context.Context, b image.Boot) (string, error)
}

// Templates resolves template ids.
type Templates interface {
	// Template returns a template. Errors: errs.NotFound with code template_not_found.
	Template(ctx context.Context, owner, id string) (template.Template, error)
}

// Link is one VM's place on its network.
type Link struct {
	VMID     string
	Hostname string
	Tap      string
	MAC      net.HardwareAddr
	Address  netip.Addr
	In, Out  vmm.NetworkLimit // of what the guest receives and sends
}

// Network connects VMs. All methods may be called again after a failure.
type Network interface {
	// Attach makes the TAP, puts it on the bridge isolated from its
	// neighbours, lets only the link's own MAC and address out of it, holds it
	// to its limits, and serves its address by DHCP. The returned file is the TAP's; the TAP
	// lives as long as somebody holds it. On error nothing of the link is left.
	Attach(ctx context.Context, l Link) (*os.File, error)

	// Reattach does the same for a TAP that a live VMM already holds.
	Reattach(ctx context.Context, l Link) error

	// Detach undoes Attach. Nothing to undo is no error.
	Detach(ctx context.Context, l Link) error

	// Traffic counts what went through the link since it was attached, also by
	// an earlier daemon. Errors: errs.NotFound when nothing is attached.
	Traffic(ctx context.Context, l Link) (Traffic, error)
}

// Forwards owns the listeners for VMs' SSH ports.
type Forwards interface {
	// Open listens on the port and forwards to the target. Opening an open
	// port with the same target is no error.
	// Errors: errs.Conflict with code ssh_port_in_use.
	Open(vmID string, port int, target netip.AddrPort) error
	// Close stops listening and ends the port's connections.
	Close(port int)
}

// Files keeps a VM's own files, below one directory per VM.
type Files interface {
	// Dir returns the VM's run directory, whether it exists or not.
	Dir(vmID string) string
	// Provision makes the directory, the VM's disk of v.DiskMiB (sparse, or a
	// copy of the root in DiskCopy mode) and its seed. On error it leaves nothing.
	Provision(ctx context.Context, v VM) error
	// ProvisionFrom does so for a VM that is a copy: fill makes the disk, at a
	// path that it is given.
	ProvisionFrom(ctx context.Context, v VM, fill func(ctx context.Context, path string) error) error
	// Disk returns the path of the VM's own disk, whether it exists or not.
	Disk(vmID string) string
	// Seed writes the NoCloud disk anew from v.
	Seed(ctx context.Context, v VM) error
	// Disks returns the VM's disks as the driver needs them; own is the file that
	// is its own. Errors: errs.Conflict with code disk_missing when that is gone.
	Disks(v VM, own string) ([]vmm.Disk, error)
	// Stage makes a place beside what the VM has, lets fill make a disk and a
	// directory of what was saved there, and makes both safe from a power cut.
	// What an earlier Stage has left is dropped. On error nothing is left.
	Stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error
	// Settle puts what was staged in the place of what the VM has: the disk, and
	// then what was saved, by takeIn, which moves that directory. It may be called
	// again when it was cut short; nothing staged is no error.
	Settle(vmID string, takeIn func(vmID, saved string) error) error
	// Unstage removes what was staged. Nothing there is no error.
	Unstage(vmID string) error
	// Remove deletes the directory. Nothing there is no error.
	Remove(vmID string) error
	// SetAside moves the directory out of the way, without deleting it.
	SetAside(vmID string) error
	// Allocated returns how many bytes of the host's disk the VM's files take.
	// Nothing there is 0.
	Allocated(vmID string) (int64, error)
	// Orphans lists directories that have no VM among known.
	Orphans(known map[string]bool) ([]string, error)
}

// Memories keeps guests' memory: in a file in RAM while they run, which their
// machines share, and on disk while they sleep. A sleeping VM's memory is
// durable once it is whole on disk.
type Memories interface {
	// Path returns the file in RAM, whether it exists or not.
	Path(vmID string) string
	// Make makes the file in RAM for a guest that will boot: empty, mib large,
	// and uid's own. One that was there is dropped.
	Make(vmID string, mib, uid int) error
	// Release drops the file in RAM. Nothing there is no error.
	Release(vmID string) error
	// Held lists the VMs with a file in RAM.
	Held() (vmIDs []string, err error)

	// Dir returns the directory that the VM's machine is saved into.
	Dir(vmID string) string
	// Used returns how much of the file in RAM is in use. A driver may write to
	// it only when it saves. Errors: errs.Unsupported when there is no file.
	Used(vmID string) (bytes int64, err error)
	// CanHold finds out whether the file in RAM could hold so many bytes.
	// Errors: Used's; errs.Exhausted with code memory_exhausted.
	CanHold(vmID string, bytes int64) error
	// Prepare makes that directory anew, for memory of so many bytes. Errors:
	// errs.Exhausted with code disk_full when the disk could not take so much
	// beside the host's reserve.
	Prepare(vmID string, bytes int64) error
	// Forget removes that directory with all that is in it. Nothing there is no
	// error.
	Forget(vmID string) error
	// TakeIn makes the directory saved the one of that VM, in the place of what
	// it had. It is called again when it was cut short.
	TakeIn(vmID, saved string) error
	// Kept returns the file that holds the memory of a sleeping VM, and the one of
	// its checksums: on disk when it is durable, else in RAM, where it has none.
	Kept(vmID string, durable bool) (memory, index string)

	// Persist makes the memory of a sleeping VM durable, and returns what all
	// that is saved of it takes on disk. The file in RAM stays. On error nothing
	// of the copy is left. Errors: errs.Exhausted with code disk_full.
	Persist(ctx context.Context, vmID string) (bytes int64, err error)
	// Has reports whether the memory of a sleeping VM is there: on disk when
	// it is durable, else in RAM.
	Has(vmID string, durable bool) bool
	// Recall makes sure that the file in RAM holds the memory of a sleeping VM,
	// and is uid's own. Errors: errs.Conflict with code saved_unusable when it
	// is gone or damaged; what is on disk stays as it is.
	Recall(ctx context.Context, vmID string, durable bool, uid int) error
}

// GuestReport is what an agent last said of its guest.
type GuestReport struct {
	AgentVersion string
	BootID       string       // changes with each boot of the guest
	Addresses    []netip.Addr // of the guest's interfaces, loopback excluded
	CloudInit    CloudInit
}

// CloudInit is cloud-init's state in a guest.
type CloudInit struct {
	Status string   // absent, disabled, running, done, error
	Errors []string // its own words, bounded
}

// Guests speaks to agents.
type Guests interface {
	// Connect keeps a session with the agent behind dial, across guest
	// reboots, until Close. observe gets each report in order, and nil when
	// the session is lost; it must not block.
	Connect(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*GuestReport)) Guest
	// Rejoin does the same for a guest that has slept: before anything else it
	// tells the agent so, with the time and with fresh randomness.
	Rejoin(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*GuestReport)) Guest
	// Recast does as Rejoin does for a guest that is a copy of another: it tells
	// the agent also who its guest is now, until one has confirmed. Nothing else
	// is asked of the guest before, and observe gets nothing.
	Recast(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*GuestReport), as Identity) Guest
}

// Identity is what makes a copied guest itself.
type Identity struct {
	InstanceID string // for cloud-init: the VM's id
	Hostname   string
	MAC        net.HardwareAddr // nil without a network; then the two below are zero
	Address    netip.Prefix
	Gateway    netip.Addr

	Setup Setup
}

// Setup is what cloud-init does in a copied guest once that has confirmed.
type Setup int

// All but the last have cloud-init take the new instance for one that it has
// served already, now and at later boots.
const (
	SetupNone Setup = iota
	// SetupKeys gives the image's default user the SSH keys of the VM's own seed.
	SetupKeys
	// SetupAnew is all that is done in a new VM, with its own seed. It adds to what
	// the original's cloud-init has done and takes nothing of that back.
	SetupAnew
)

// Guest is a session with one agent.
type Guest interface {
	// Confirmed waits until a guest that is a copy has taken its identity; for
	// any other it is nil at once. Errors: errs.Unsupported with code
	// agent_too_old; errs.Internal with code recast_failed and the guest's own
	// words, after which the session still goes on asking; errs.Unavailable when
	// ctx is done, or the session is closed, before.
	Confirmed(ctx context.Context) error
	// Shutdown asks the guest to power off (or to reboot), and returns once it
	// has accepted. Errors: errs.Unavailable when no agent answers before ctx is done.
	Shutdown(ctx context.Context, reboot bool) error
	// SetClock tells the guest the time after its CPUs have stood. It does not
	// wait for an agent. Errors: errs.Unavailable.
	SetClock(ctx context.Context) error
	// Usage tells what the guest uses. It does not wait for an agent.
	// Errors: errs.Unavailable, errs.Unsupported from an agent that is too old.
	Usage(ctx context.Context) (GuestUsage, error)
	// Dial connects to a TCP port on the guest's own loopback, with or without
	// a network. ctx bounds the connecting. The connection has CloseWrite.
	// Errors: errs.Unavailable with code port_refused when nobody listens;
	// errs.Unsupported from an agent that is too old.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Close ends the session and waits for its goroutines.
	Close() error
}

// Consoles reads serial consoles into bounded logs and shares them out. The log
// of what a VMM itself prints is read beside them.
type Consoles interface {
	// Open starts reading the console behind dial, until Close.
	Open(vmID string, dial func(ctx context.Context) (net.Conn, error)) error
	// Close stops reading; the log stays.
	Close(vmID string)
	// Log writes the last tail lines (all when tail < 0) to w and, with
	// follow, what comes until ctx is done or the console closes.
	Log(ctx context.Context, vmID string, tail int, follow bool, w io.Writer) error
	// VMMLog writes the last tail lines of what the VM's VMM printed since it was
	// started (all when tail < 0) to w and, with follow, what comes until ctx is
	// done or the console closes.
	VMMLog(ctx context.Context, vmID string, tail int, follow bool, w io.Writer) error
	// Attach connects a person: scrollback first, then live both ways. Only
	// one attached writer at a time; a second gets errs.Conflict, unless readOnly.
	Attach(ctx context.Context, vmID string, readOnly bool) (io.ReadWriteCloser, error)
}

// Host says what the machine has.
type Host interface {
	CPUs() int
	// MemMiB returns the memory that VMs may take in all, overcommit included.
	MemMiB() int64
	// DiskMiB returns the disk that VMs' own disks may take in all, overcommit included.
	DiskMiB() (int64, error)
}
