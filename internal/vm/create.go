package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

func asError(err error, target **errs.Error) bool { return errors.As(err, target) }

// Create makes and starts a VM, and returns it once it runs. When ctx ends
// before that, the VM is returned as it was stored, with errs.Unavailable and
// code still_working, and goes on coming up. A create that
// fails leaves a row in state error with the reason, and nothing else.
//
// Errors: errs.Invalid names the field; errs.Conflict for what is taken;
// errs.Exhausted when the host is full.
func (s *Service) Create(ctx context.Context, owner string, req CreateRequest) (VM, error) {
	if v, found, err := s.createdBefore(ctx, owner, req.Idempotency); found || err != nil {
		return v, err
	}
	v, err := s.resolve(ctx, owner, req)
	if err != nil {
		return VM{}, err
	}
	return s.make(ctx, v, req, s.startWarm)
}

// make stores a VM that is resolved and starts it by start.
func (s *Service) make(ctx context.Context, v VM, req CreateRequest, start func(context.Context, VM) (VM, error)) (VM, error) {
	began := time.Now()
	// The lock is taken before the row can be seen, so that nobody operates on
	// a VM that is half made. The id is new: the lock is free.
	unlock, err := s.locks.lock(ctx, v.ID)
	if err != nil {
		return VM{}, err
	}
	want := Wanted{Address: req.Address, MAC: req.MAC}
	var stored VM
	var created bool
	err = s.withRoom(ctx, v.OwnerID, func() error {
		limit, err := s.capacity()
		if err == nil {
			stored, created, err = s.deps.Store.CreateVM(ctx, v, want, s.settings.Pools, limit, req.Idempotency)
		}
		return err
	})
	if err != nil || !created {
		unlock()
		if err != nil {
			return VM{}, err
		}
		return s.await(ctx, v.OwnerID, stored.ID, begun)
	}
	reserved := Step{Name: "reserve", Took: time.Since(began)}
	v, err = s.detach(ctx, unlock, func(ctx context.Context) (VM, error) {
		return s.told(ctx, stored, "create", start)
	})
	if errs.HasCode(err, "still_working") {
		return stored, err // so that the caller learns its id
	}
	v.Took = append([]Step{reserved}, v.Took...)
	return v, err
}

// step is one part of a start, with its undo. undo is called when a later step
// fails, and when do itself failed half-way; it does nothing while a VMM
// process lives that could not be ended.
type step struct {
	name string
	do   func(context.Context, *boot) error
	undo func(context.Context, *boot)
}

// boot is a start under way.
type boot struct {
	vm      VM
	fresh   bool       // the VM has no disk of its own yet: undo removes all of it
	linked  bool       // the network step is done
	tap     *os.File   // until the driver has it
	stuck   bool       // the VMM could not be ended: nothing it may use is given away
	base    vmm.Shared // what its machine shares; zero: nothing
	sleep   *Sleep     // how its memory is kept, when it goes to sleep or is woken
	machine vmm.Machine
	in      *instance
}

// steps are what a start does, in order.
func (s *Service) steps() []step {
	return []step{
		{"files", s.provision, s.unprovision},
		{"memory", s.makeMemory, s.releaseMemory},
		{"network", s.attach, s.detachNetwork},
		{"forward", s.openForward, s.closeForward},
		{"machine", s.launch, s.kill},
		{"row", s.record, nil},
		{"guest", s.connect, s.disconnect},
	}
}

// start runs the steps. Precondition: the VM's lock is held, its lease is
// whole and no machine of it lives.
func (s *Service) start(ctx context.Context, v VM) (VM, error) {
	b := &boot{vm: v, fresh: !v.Provisioned}
	began := time.Now()
	took, failed, err := s.take(ctx, s.steps(), b)
	if err != nil {
		return s.startFailed(ctx, b, failed, err)
	}
	s.deps.Log.Info("vm started", "vm", v.ID, "took", time.Since(began), "steps", took)
	s.watch(v.ID, b.in)
	b.vm.Took = took
	return b.vm, nil
}

// take does steps in order; when one fails, those up to it are undone. It
// returns how long each took, or which one failed.
func (s *Service) take(ctx context.Context, steps []step, b *boot) (took []Step, failed string, err error) {
	for i, st := range steps {
		began := time.Now()
		if err := st.do(ctx, b); err != nil {
			s.undo(ctx, steps[:i+1], b)
			return nil, st.name, err
		}
		took = append(took, Step{Name: st.name, Took: time.Since(began)})
	}
	return took, "", nil
}

func (s *Service) undo(ctx context.Context, steps []step, b *boot) {
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].undo != nil {
			steps[i].undo(ctx, b)
		}
	}
}

// startFailed stores why. A VM that never had a disk gives its lease back.
func (s *Service) startFailed(ctx context.Context, b *boot, stepName string, cause error) (VM, error) {
	v := b.vm
	if b.fresh && !b.stuck {
		s.releaseLease(ctx, v.ID)
	}
	reason := fmt.Sprintf("cannot start the VM (%s): %s", stepName, publicMessage(cause))
	if b.stuck {
		reason += "; its VMM could not be ended"
	}
	hasDisk := !b.fresh || (b.stuck && v.Copying == "")
	if err := s.fail(ctx, v.ID, hasDisk, reason, b.handle()); err != nil {
		s.deps.Log.Error("cannot store the failure of a start", "vm", v.ID, "err", err)
	}
	s.deps.Log.Warn("vm start failed", "vm", v.ID, "step", stepName, "err", cause)
	return VM{}, answer(cause, errs.New(errs.Internal, "start_failed", "cannot start VM %s: the %s step failed", v.ID, stepName))
}

// answer is what an owner is told of cause: its own words where it has any for
// them, else those of without.
func answer(cause error, without *errs.Error) error {
	var e *errs.Error
	if asError(cause, &e) {
		return e
	}
	return without.WithCause(cause)
}

// handle returns what is needed to find a process that could not be ended, or nil.
func (b *boot) handle() *vmm.Handle {
	if !b.stuck {
		return nil
	}
	h := b.machine.Handle()
	return &h
}

// fail stores state error with a reason. provisioned tells whether the VM
// still has a disk, and left names a VMM process that is still there.
func (s *Service) fail(ctx context.Context, id string, provisioned bool, reason string, left *vmm.Handle) error {
	_, err := s.update(ctx, id, func(v *VM) {
		v.State, v.StateReason, v.Provisioned = Failed, reason, provisioned
		v.Machine, v.Sleep, v.Conditions = left, nil, Conditions{}
	})
	return err
}

func (s *Service) releaseLease(ctx context.Context, id string) {
	if err := s.deps.Store.ReleaseVM(ctx, id); err != nil {
		s.deps.Log.Error("cannot release the lease of a failed create", "vm", id, "err", err)
	}
}

// publicMessage returns what an owner may read of err.
func publicMessage(err error) string {
	var e *errs.Error
	if asError(err, &e) {
		return e.Message
	}
	return "an internal fault; hatchd's log has the details"
}

func (s *Service) provision(ctx context.Context, b *boot) error {
	if !b.fresh {
		return s.deps.Files.Seed(ctx, b.vm)
	}
	return s.withRoom(ctx, b.vm.OwnerID, func() error { return s.deps.Files.Provision(ctx, b.vm) })
}

func (s *Service) unprovision(_ context.Context, b *boot) {
	if !b.fresh || b.stuck {
		return // the disk holds the owner's data, or is in use
	}
	if err := s.deps.Files.Remove(b.vm.ID); err != nil {
		s.deps.Log.Error("cannot remove the files of a failed create", "vm", b.vm.ID, "err", err)
	}
}

func (s *Service) attach(ctx context.Context, b *boot) error {
	if !b.vm.EnableNetwork {
		return nil
	}
	tap, err := s.deps.Network.Attach(ctx, b.vm.Link())
	b.tap, b.linked = tap, err == nil
	return err
}

func (s *Service) detachNetwork(ctx context.Context, b *boot) {
	if !b.linked || b.stuck {
		return // an attach that failed has left nothing
	}
	if b.tap != nil {
		_ = b.tap.Close() // again after the driver did: harmless
	}
	s.detachLink(ctx, b.vm)
}

func (s *Service) detachLink(ctx context.Context, v VM) {
	if !v.EnableNetwork || !v.Lease.Address.IsValid() {
		return
	}
	if err := s.deps.Network.Detach(ctx, v.Link()); err != nil {
		s.deps.Log.Error("cannot take a VM off its network", "vm", v.ID, "err", err)
	}
}

// Link returns the VM's place on its network.
func (v VM) Link() Link {
	return Link{
		VMID: v.ID, Hostname: v.Hostname(), Tap: v.Lease.Tap, MAC: v.Lease.MAC, Address: v.Lease.Address,
		In: v.RateLimits.NetworkIn, Out: v.RateLimits.NetworkOut,
	}
}

func (s *Service) launch(ctx context.Context, b *boot) error {
	spec, err := s.spec(ctx, b)
	if err != nil {
		return err
	}
	b.machine, err = s.deps.Drivers[b.vm.Driver].Start(ctx, spec)
	return err
}

// spec is what the VM's machine is started with.
func (s *Service) spec(ctx context.Context, b *boot) (vmm.Spec, error) {
	spec, err := s.standingSpec(ctx, b.vm, s.deps.Files.Disk(b.vm.ID))
	if spec.NIC != nil {
		spec.NIC.TAP = b.tap
	}
	return spec, err
}

// standingSpec is what a machine of the VM is started with, but for its TAP; disk
// is the file that is its own disk.
func (s *Service) standingSpec(ctx context.Context, v VM, disk string) (vmm.Spec, error) {
	if !v.Boot.Kernel.Unchanged() || !v.Boot.Rootfs.Unchanged() {
		return vmm.Spec{}, errs.New(errs.Conflict, "image_changed",
			"cannot start from image %s: its kernel or root file system was changed or removed since the VM was created", v.ImageID).
			WithHint("put the original file back; VMs on an overlay cannot change their base")
	}
	if _, ok := s.deps.Drivers[v.Driver]; !ok {
		return vmm.Spec{}, noDriver(v.ID, v.Driver)
	}
	initramfs, err := s.deps.Images.Initramfs(ctx, v.Boot)
	if err != nil {
		return vmm.Spec{}, err
	}
	disks, err := s.deps.Files.Disks(v, disk)
	if err != nil {
		return vmm.Spec{}, err
	}
	net := s.settings.Pools.Network
	spec := vmm.Spec{
		ID: v.ID, Dir: s.deps.Files.Dir(v.ID), VCPUs: v.VCPUs, MemMiB: v.MemMiB,
		Kernel: v.Boot.Kernel.Path, Initramfs: initramfs,
		Cmdline: v.Cmdline(net.Gateway, net.Prefix.Bits()), Disks: disks,
		UID: s.uid(v), GID: s.uid(v), Limits: s.limitsOf(v),
		Origin: map[string]string{"kernel": v.Boot.Kernel.Digest, "rootfs": v.Boot.Rootfs.Digest},
	}
	if s.canSleep(v) {
		spec.Memory = s.deps.Memories.Path(v.ID)
	}
	if v.EnableNetwork {
		spec.NIC = &vmm.NIC{MAC: v.Lease.MAC}
	}
	return spec, nil
}

// limitsOf are the rate limits that the VM's driver is to hold its guest to. The
// network's hold at the TAP in any case.
func (s *Service) limitsOf(v VM) vmm.RateLimits {
	limits := v.RateLimits
	if !s.deps.Drivers[v.Driver].Info().Capabilities.NetworkLimits {
		limits.NetworkIn, limits.NetworkOut = vmm.NetworkLimit{}, vmm.NetworkLimit{}
	}
	return limits
}

func noDriver(id, driver string) *errs.Error {
	return errs.New(errs.Unsupported, "vmm_unavailable", "VM %s runs on %s, which cannot be used on this host", id, driver).
		WithHint("hatch doctor says what it lacks")
}

func (s *Service) kill(ctx context.Context, b *boot) {
	if b.machine == nil {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	if err := b.machine.Kill(bounded); err != nil {
		b.stuck = true
		s.deps.Log.Error("cannot end the VMM of a failed start", "vm", b.vm.ID, "err", err)
	}
	_ = b.machine.Close()
}

// record stores that the VM runs, before anything else hangs on it: a daemon
// that starts after a crash finds the machine by this row.
func (s *Service) record(ctx context.Context, b *boot) error {
	h := b.machine.Handle()
	h.Base = b.base
	now := time.Now().UTC().Truncate(time.Microsecond)
	v, err := s.update(ctx, b.vm.ID, func(v *VM) {
		v.State, v.StateReason, v.Intent = Running, "", WantRunning
		v.Machine, v.Provisioned, v.StartedAt = &h, true, &now
		v.Copying, v.Conditions = "", bootConditions(v, now)
	})
	if err != nil {
		return err
	}
	b.vm = v
	return nil
}

// bootConditions is what is known of a guest that has just begun to boot.
func bootConditions(v *VM, now time.Time) Conditions {
	c := Conditions{
		Network:   Condition{Status: Unknown, Reason: "Booting", ChangedAt: now},
		Agent:     Condition{Status: Unknown, Reason: "Booting", ChangedAt: now},
		CloudInit: Condition{Status: Unknown, Reason: "Booting", ChangedAt: now},
	}
	if !v.EnableNetwork {
		c.Network = Condition{Status: False, Reason: "Disabled", Message: "the VM has no network", ChangedAt: now}
	}
	return c
}

// connect opens this daemon's side of the machine: console and agent.
func (s *Service) connect(_ context.Context, b *boot) error {
	return s.connectBy(b, s.deps.Guests.Connect)
}

func (s *Service) connectBy(b *boot, connect connectGuest) error {
	in, err := s.join(b.vm.ID, b.machine, connect)
	if err != nil {
		return err
	}
	b.in = in
	s.hold(b.vm.ID, in)
	return nil
}

// connectGuest is one of the ways to a guest that Guests has.
type connectGuest func(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*GuestReport)) Guest

func (s *Service) join(id string, m vmm.Machine, connect connectGuest) (*instance, error) {
	console := func(ctx context.Context) (net.Conn, error) { return m.Dial(ctx, vmm.ChannelConsole) }
	if err := s.deps.Consoles.Open(id, console); err != nil {
		return nil, fmt.Errorf("cannot open the console: %w", err)
	}
	in := &instance{machine: m, reports: make(chan *GuestReport, 1)}
	agent := func(ctx context.Context) (net.Conn, error) { return m.Dial(ctx, vmm.ChannelAgent) }
	in.guest = connect(id, agent, in.observe)
	return in, nil
}

// observe keeps the newest report for the watcher. It never blocks.
func (in *instance) observe(r *GuestReport) {
	for {
		select {
		case in.reports <- r:
			return
		default:
		}
		select {
		case <-in.reports: // an older one nobody has read
		default:
		}
	}
}

func (s *Service) disconnect(_ context.Context, b *boot) {
	if b.in == nil {
		s.deps.Consoles.Close(b.vm.ID)
		return
	}
	s.release(b.vm.ID, b.in)
	_ = b.in.guest.Close()
	s.deps.Consoles.Close(b.vm.ID)
}

func (s *Service) openForward(_ context.Context, b *boot) error {
	return s.forward(b.vm)
}

// forward lets nobody log in to a VM of hatchd's own: strangers' VMs begin as it.
func (s *Service) forward(v VM) error {
	if !v.EnableNetwork || v.OwnerID == access.SystemID {
		return nil
	}
	return s.deps.Forwards.Open(v.ID, v.Lease.SSHPort, netip.AddrPortFrom(v.Lease.Address, 22))
}

func (s *Service) closeForward(_ context.Context, b *boot) {
	if b.vm.EnableNetwork && b.vm.Lease.SSHPort != 0 {
		s.deps.Forwards.Close(b.vm.Lease.SSHPort)
	}
}
