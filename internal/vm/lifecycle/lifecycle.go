// Package lifecycle is the facade of VMs: the verbs that doors call, from create
// to delete.
//
// It does little itself: each verb is an operation on one VM (operation), whose
// work is in power, clone and transition; it checks what callers give. Start at
// [New], which puts the parts together, and at [Service.Create].
package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/capacity"
	"github.com/hatchvm/hatch/internal/vm/clone"
	"github.com/hatchvm/hatch/internal/vm/hostpower"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/power"
	"github.com/hatchvm/hatch/internal/vm/recovery"
	"github.com/hatchvm/hatch/internal/vm/transition"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Images resolves image ids.
type Images interface {
	// Image returns an image in scope, checked to be unchanged on disk.
	// Errors: errs.NotFound with code image_not_found, errs.Conflict with code
	// image_changed.
	Image(ctx context.Context, scope access.Scope, id string) (image.Image, error)

	transition.BootFiles
}

// Templates resolves template ids.
type Templates interface {
	// Template returns a template. Errors: errs.NotFound with code template_not_found.
	Template(ctx context.Context, scope access.Scope, id string) (template.Template, error)
}

// Host says what the machine has.
type Host interface {
	CPUs() int
	capacity.Host
	// BootID identifies this boot of the host.
	BootID() string
	// IsFull reports whether err says that a file system of the host, on disk or
	// in RAM, is full.
	IsFull(err error) bool
}

// Warm is the pool of booted guests.
type Warm interface {
	vm.WarmPool
	capacity.WarmPool
}

// Deps are what the service works with. All are required but Warm, Idle, HasRoom and Dial.
type Deps struct {
	Store     vm.Store
	Images    Images
	Templates Templates
	Network   network.Attacher
	Forwards  network.Forwarder
	Files     vm.Files
	Memories  vm.Memories
	Guests    vm.Guests
	Consoles  vm.Consoles
	Host      Host

	Snapshots     *snapshot.Service
	SnapshotFiles snapshot.Files
	Warm          Warm             // nil: every new VM boots
	Idle          capacity.Evictor // nil: no VM is put to sleep for another, nor waited for

	// HasRoom reports whether guests that stand still, because the host's disk was full,
	// may write again.
	HasRoom func() bool

	Drivers map[string]vmm.Driver // by Info().Name
	Log     *slog.Logger

	// PageStatus requests a page from a guest's web server over conn and returns
	// the status of the answer. host is the server's name in the request.
	PageStatus func(conn io.ReadWriter, host, path string) (int, error)

	// Dial connects to a guest's address; nil means the host's own network.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

// Settings are the operator's choices.
type Settings struct {
	DefaultDriver string // a key of Deps.Drivers
	VCPUs         int
	MemMiB        int
	DiskMiB       int
	BootArgs      string
	Pools         network.Pools
	StopTimeout   time.Duration // how long a stop waits for the guest before it kills
	BootTime      time.Duration // how long a booting guest may keep others from starting; 0: not at all
	Idle          machine.IdlePolicy
	OwnUser       bool // run each VMM under the lease's UID; off for the fake driver

	// WakeTimeout bounds how long a use of a sleeping VM waits until it is awake; 0: as long
	// as its caller waits.
	WakeTimeout time.Duration

	Heartbeat live.Heartbeat // the zero value: live.DefaultHeartbeat

	HostPower hostpower.Settings
}

// Service is the facade.
type Service struct {
	*clone.Service // snapshots, restores and clones

	deps     Deps
	settings Settings
	runner   *operation.Runner
	live     *live.Registry
	engine   *transition.Engine
	capacity *capacity.Service
	power    *power.Service
	recovery *recovery.Service
	host     *hostpower.Service
	reach    *reach.Reach
}

// New puts a service together. Call Recover once before operations on existing
// VMs can begin, and Close at the end.
func New(deps Deps, settings Settings) *Service {
	if deps.Dial == nil {
		deps.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			// No keep-alive probes: a sleeping guest does not answer them, and its
			// connections must survive.
			return (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", to.String())
		}
	}
	if deps.HasRoom == nil {
		deps.HasRoom = func() bool { return true }
	}
	s := &Service{deps: deps, settings: settings}
	s.runner = operation.New(deps.Store, deps.Log)
	s.live = live.New(live.Config{
		Drivers: deps.Drivers, Guests: deps.Guests, Consoles: deps.Consoles, BootID: deps.Host.BootID, Log: deps.Log,
		Heartbeat: cmp.Or(settings.Heartbeat, live.DefaultHeartbeat),
	})
	s.capacity = capacity.New(capacity.Config{
		Store: deps.Store, Host: deps.Host, Disks: deps.Snapshots, Warm: deps.Warm, Idle: deps.Idle,
		Bases: deps.SnapshotFiles.Bases, Pools: settings.Pools, Log: deps.Log,
	})
	s.engine = transition.New(transition.Config{
		Files: deps.Files, Memories: deps.Memories, Network: deps.Network, Forwards: deps.Forwards, Guests: deps.Guests,
		BootFiles: deps.Images, Snapshots: deps.SnapshotFiles, Live: s.live, Drivers: deps.Drivers, Evictor: s.capacity,
		Subnet: settings.Pools.Network, OwnUser: settings.OwnUser, Log: deps.Log,
	})
	s.power = power.New(power.Config{
		Store: deps.Store, Files: deps.Files, Memories: deps.Memories, Runner: s.runner, Engine: s.engine, Live: s.live,
		Capacity: s.capacity, StopTimeout: settings.StopTimeout, CPUs: deps.Host.CPUs(), BootTime: settings.BootTime, HasRoom: deps.HasRoom,
		FallAsleep: func(id string) (vm.Activity, func()) { return s.reach.FallAsleep(id) }, Log: deps.Log,
	})
	s.Service = clone.New(clone.Config{
		Store: deps.Store, Runner: s.runner, Engine: s.engine, Live: s.live, Power: s.power, Capacity: s.capacity,
		Snapshots: deps.Snapshots, SnapshotFiles: deps.SnapshotFiles, Warm: deps.Warm, Drivers: deps.Drivers,
		Pools: settings.Pools, Check: s.check, IsFull: deps.Host.IsFull, Log: deps.Log,
	})
	s.recovery = recovery.New(recovery.Config{
		Store: deps.Store, Files: deps.Files, Memories: deps.Memories, Network: deps.Network,
		Runner: s.runner, Engine: s.engine, Live: s.live, Power: s.power, Log: deps.Log,
	})
	s.host = hostpower.New(hostpower.Config{
		Store: deps.Store, Runner: s.runner, Engine: s.engine, Live: s.live, Power: s.power,
		Settings: settings.HostPower, Log: deps.Log,
	})
	s.reach = reach.New(reach.Config{
		Store: deps.Store, Live: s.live, Locks: s.runner, Waker: s.power, WakeTimeout: settings.WakeTimeout, DialNetwork: deps.Dial,
	})
	return s
}

// Recover adopts what an earlier hatchd left (see internal/vm/recovery), and then
// lets operations begin, and brings back VMs that went down with the host, in the
// background until ctx is done. root is the directory below which the run
// directories lie.
func (s *Service) Recover(ctx context.Context, root string) error {
	err := s.recovery.Run(ctx, root)
	return errors.Join(err, s.host.Up(ctx))
}

// PostponeStarts lets no start begin any more that waits for its turn: hatchd is ending.
// The next one starts new VMs and those that were to come back. Errors from now on:
// errs.Unavailable with code shutting_down.
func (s *Service) PostponeStarts() { s.power.CloseStarts() }

// RefuseStarts lets no VM be created, started or woken any more: the host is
// shutting down. Errors from now on: errs.Unavailable with code host_shutting_down.
func (s *Service) RefuseStarts() {
	s.capacity.Close()
	s.power.CloseStarts()
}

// Down puts VMs to sleep, or stops them, for the shutdown of the host; see
// hostpower.Service.Down. Precondition: RefuseStarts was called.
func (s *Service) Down(ctx context.Context) error { return s.host.Down(ctx) }

// Close leaves all machines running, after the operations in progress have ended
// or ctx is done.
func (s *Service) Close(ctx context.Context) error {
	s.power.Close()
	if err := s.runner.Close(ctx); err != nil {
		return err
	}
	s.live.Close()
	return nil
}

// Reach returns the road into guests.
func (s *Service) Reach() *reach.Reach { return s.reach }

// Get returns one VM. Errors: errs.NotFound.
func (s *Service) Get(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.deps.Store.VM(ctx, scope, id)
}

// List returns one page of the VMs in scope, newest first, and the cursor of the
// next page or "".
func (s *Service) List(ctx context.Context, scope access.Scope, f vm.Filter) ([]vm.VM, string, error) {
	return s.deps.Store.VMs(ctx, scope, f)
}

// Start starts a VM; see power.Service.Start.
func (s *Service) Start(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "start", Do: s.power.Start})
}

// Stop stops a VM; see power.Service.StopWithin. nil is the configured timeout.
func (s *Service) Stop(ctx context.Context, scope access.Scope, id string, timeout *time.Duration) (vm.VM, error) {
	if timeout == nil {
		timeout = &s.power.StopTimeout
	}
	return s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "stop", Urgent: *timeout == 0, Do: func(ctx context.Context, v vm.VM) (vm.VM, error) {
		return s.power.StopWithin(ctx, v, *timeout, power.StopRequested)
	}})
}

// Restart stops a VM, when it runs, and starts it.
func (s *Service) Restart(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "restart", Do: s.power.Restart})
}

// Pause halts a running VM's CPUs.
func (s *Service) Pause(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "pause", Do: s.power.Pause})
}

// Resume continues a paused VM.
func (s *Service) Resume(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "resume", Do: s.power.Resume})
}

// Sleep puts a running VM to sleep; see power.Service.Sleep.
func (s *Service) Sleep(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "sleep", Do: s.power.Sleep})
}

// AwaitDurable returns a sleeping VM once its memory is on disk. Errors: errs.NotFound;
// errs.Conflict with code vm_not_asleep when the VM was woken or stopped before;
// errs.TimedOut with code wait_timeout when ctx is done first.
func (s *Service) AwaitDurable(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Await(ctx, scope, id, vm.VM.IsDurable)
}

// Wake wakes a sleeping VM; see power.Service.Wake.
func (s *Service) Wake(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "wake", Do: s.power.Wake})
}

// WakeOnDemand wakes a sleeping VM for traffic; see reach.Reach.WakeOnDemand.
func (s *Service) WakeOnDemand(ctx context.Context, id string) error {
	return s.reach.WakeOnDemand(ctx, id)
}

// Delete ends a VM, in any phase, and removes everything of it.
func (s *Service) Delete(ctx context.Context, scope access.Scope, id string) error {
	_, err := s.runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "delete", Urgent: true, Do: s.power.Delete})
	return err
}

// Log writes the lines of the VM's console log that q asks for to w.
func (s *Service) Log(ctx context.Context, scope access.Scope, id string, q vm.LogQuery, w io.Writer) error {
	if _, err := s.deps.Store.VM(ctx, scope, id); err != nil {
		return err
	}
	return s.deps.Consoles.Log(ctx, id, q, w)
}

// VMMLog writes what the VM's VMM has printed since its last start: its last tail lines
// (all when tail is negative) and, with follow, what comes until ctx is done.
func (s *Service) VMMLog(ctx context.Context, scope access.Scope, id string, tail int, follow bool, w io.Writer) error {
	if _, err := s.deps.Store.VM(ctx, scope, id); err != nil {
		return err
	}
	return s.deps.Consoles.VMMLog(ctx, id, tail, follow, w)
}

// Console attaches the caller to the VM's serial console, and wakes a sleeping
// VM. Errors: errs.Conflict when the VM does not run, or another writer is
// attached; those of Wake.
func (s *Service) Console(ctx context.Context, scope access.Scope, id string, readOnly bool) (io.ReadWriteCloser, error) {
	_, release, err := s.reach.Open(ctx, scope, id, reach.Console, reach.Wake)
	if err != nil {
		return nil, err
	}
	attached, err := s.deps.Consoles.Attach(ctx, id, readOnly)
	if err != nil {
		release()
		return nil, err
	}
	return &attachedConsole{attached, release}, nil
}

// attachedConsole is a console whose end ends a use of its VM.
type attachedConsole struct {
	io.ReadWriteCloser
	release func()
}

// Close detaches.
func (c *attachedConsole) Close() error {
	defer c.release()
	return c.ReadWriteCloser.Close()
}
