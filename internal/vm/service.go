package vm

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Deps are the service's surroundings. All are required but Dial.
type Deps struct {
	Store     Store
	Images    Images
	Templates Templates
	Network   Network
	Forwards  Forwards
	Files     Files
	Memories  Memories
	Guests    Guests
	Consoles  Consoles
	Host      Host

	Snapshots     *snapshot.Service
	SnapshotFiles snapshot.Files
	Warm          Warm // nil: every new VM boots

	Drivers map[string]vmm.Driver // by Info().Name
	Log     *slog.Logger

	// PageStatus asks a guest's web server for a page over conn and returns the
	// status of its answer. host is what the server is to be called.
	PageStatus func(conn io.ReadWriter, host, path string) (int, error)

	// Dial reaches a guest's address; nil means the host's own network.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

// Settings are the operator's choices.
type Settings struct {
	DefaultDriver string // a key of Deps.Drivers
	VCPUs         int
	MemMiB        int
	DiskMiB       int
	BootArgs      string
	Pools         Pools
	StopTimeout   time.Duration // how long a graceful stop waits before it kills
	OwnUser       bool          // run each VMM under the lease's UID; off for the fake driver
}

// Service is what can be done with VMs. Operations on one VM are serialised;
// a caller's context bounds the waiting only: an operation that has begun goes
// on to its end when the caller leaves.
type Service struct {
	deps     Deps
	settings Settings
	locks    *locks
	changes  *changes

	adopted chan struct{}  // closed once Adopt is through
	closing chan struct{}  // closed by Close
	work    sync.WaitGroup // operations and watchers

	mu   sync.Mutex
	live map[string]*instance // machines this daemon holds, by VM id

	persister persister
	rousings  *rousings

	copying *turns // making VMs of snapshots
	reading *turns // all of a snapshot; whoever has a turn wants none of copying
}

// instance is one machine this daemon holds, with what hangs on it.
type instance struct {
	machine vmm.Machine
	guest   Guest
	reports chan *GuestReport // the newest unread report; capacity 1
	cpu     cpuMeter
	watched bool // watch has been called; guarded by Service.mu
}

// New makes a service. Call Adopt once before operations on existing VMs can
// go on, and Close at the end.
func New(deps Deps, settings Settings) *Service {
	if deps.Dial == nil {
		deps.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", to.String())
		}
	}
	closing := make(chan struct{})
	return &Service{
		deps: deps, settings: settings,
		locks: newLocks(), changes: newChanges(),
		adopted: make(chan struct{}), closing: closing,
		live: map[string]*instance{}, persister: newPersister(), rousings: newRousings(),
		copying: newTurns(copiesAtOnce+1, copiesAtOnce, closing), reading: newTurns(readingsAtOnce+1, readingsAtOnce, closing),
	}
}

// Close lets go of all machines without ending them, after the operations
// under way have ended or ctx is done.
func (s *Service) Close(ctx context.Context) error {
	close(s.closing)
	s.persister.close()
	done := make(chan struct{})
	go func() { s.work.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("operations still under way: %w", ctx.Err())
	}
	s.mu.Lock()
	held := s.live
	s.live = map[string]*instance{}
	s.mu.Unlock()
	for id, in := range held {
		s.letGo(id, in)
	}
	return nil
}

// letGo closes this daemon's side of a machine and leaves the machine running.
func (s *Service) letGo(id string, in *instance) {
	if in.guest != nil {
		_ = in.guest.Close()
	}
	s.deps.Consoles.Close(id)
	_ = in.machine.Close()
}

// Get returns one VM. Errors: errs.NotFound.
func (s *Service) Get(ctx context.Context, owner, id string) (VM, error) {
	return s.deps.Store.VM(ctx, owner, id)
}

// List returns one page of the owner's VMs, newest first, and the cursor of
// the next page or "".
func (s *Service) List(ctx context.Context, owner string, f Filter) ([]VM, string, error) {
	return s.deps.Store.VMs(ctx, owner, f)
}

// operate runs op under the VM's lock, and adds to the log how it ended. The
// lock is awaited as long as ctx allows; op itself then runs to its end,
// whatever becomes of ctx.
func (s *Service) operate(ctx context.Context, owner, id, operation string, op func(context.Context, VM) (VM, error)) (VM, error) {
	unlock, err := s.claim(ctx, owner, id)
	if err != nil {
		return VM{}, err
	}
	return s.detach(ctx, unlock, func(ctx context.Context) (VM, error) {
		return s.perform(ctx, owner, id, operation, op)
	})
}

// claim is turn for a VM that the owner must have.
func (s *Service) claim(ctx context.Context, owner, id string) (unlock func(), err error) {
	if _, err := s.deps.Store.VM(ctx, owner, id); err != nil {
		return nil, err
	}
	return s.turn(ctx, id)
}

// perform is operate for whoever holds the VM's lock.
func (s *Service) perform(ctx context.Context, owner, id, operation string, op func(context.Context, VM) (VM, error)) (VM, error) {
	v, err := s.locked(ctx, owner, id)
	if err != nil {
		return VM{}, err
	}
	return s.told(ctx, v, operation, op)
}

// locked reads the VM as it is now that its lock is held, after finishing a
// restore that was cut short.
func (s *Service) locked(ctx context.Context, owner, id string) (VM, error) {
	v, err := s.deps.Store.VM(ctx, owner, id)
	if err != nil {
		return VM{}, err
	}
	return s.moveIn(ctx, v)
}

// turn waits for the VM's lock, and before it for the adoption, as long as ctx
// allows.
func (s *Service) turn(ctx context.Context, id string) (unlock func(), err error) {
	select {
	case <-s.adopted:
	case <-ctx.Done():
		return nil, errStarting
	}
	if unlock, err = s.locks.lock(ctx, id); err != nil {
		return nil, errs.New(errs.Unavailable, "vm_busy", "cannot operate on the VM: another operation is still under way").
			WithHint("try again, or wait longer")
	}
	return unlock, nil
}

var errStarting = errs.New(errs.Unavailable, "starting_up", "cannot operate on VMs yet: hatchd is still taking over the running ones").
	WithHint("try again in a moment")

// detach runs op in the background and waits for it as long as ctx allows.
// unlock is called when op ends.
func (s *Service) detach(ctx context.Context, unlock func(), op func(context.Context) (VM, error)) (VM, error) {
	return detached(ctx, s, func(ctx context.Context) (VM, error) {
		defer unlock()
		return op(ctx)
	})
}

// detached runs op to its end, whatever becomes of ctx, and waits for it as long
// as ctx allows.
func detached[T any](ctx context.Context, s *Service, op func(context.Context) (T, error)) (T, error) {
	type outcome struct {
		result T
		err    error
	}
	done := make(chan outcome, 1)
	free := context.WithoutCancel(ctx)
	s.work.Go(func() {
		result, err := op(free)
		done <- outcome{result, err}
	})
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
		var none T
		return none, errs.New(errs.Unavailable, "still_working", "the operation goes on, but the request ended before it").
			WithHint("look at the VM's state").WithCause(ctx.Err())
	}
}

// update changes the stored VM and wakes whoever waits for it.
func (s *Service) update(ctx context.Context, id string, change func(*VM)) (VM, error) {
	v, err := s.deps.Store.UpdateVM(ctx, id, change)
	if err == nil {
		s.changes.announce(id)
	}
	return v, err
}

// setState stores a state and its reason.
func (s *Service) setState(ctx context.Context, id string, state State, reason string) (VM, error) {
	return s.update(ctx, id, func(v *VM) {
		v.State, v.StateReason = state, reason
		if !state.Live() {
			v.Machine = nil
			v.Conditions = Conditions{}
		}
	})
}

// instanceOf returns the machine this daemon holds for a VM, or nil.
func (s *Service) instanceOf(id string) *instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// hold remembers a machine as the VM's own.
func (s *Service) hold(id string, in *instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[id] = in
}

// release forgets the machine and reports whether it was still the VM's own.
func (s *Service) release(id string, in *instance) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[id] != in {
		return false
	}
	delete(s.live, id)
	return true
}
