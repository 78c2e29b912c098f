// Package live is the registry of machines that this hatchd holds: the VMM
// process, the session with the guest's agent, and the console's reader of each
// running VM.
//
// It stores nothing: what a machine's end or a guest's report means for a VM is
// for the handlers of [Registry.Handle]. Start at [Registry.Get].
package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Machine is one machine that this hatchd holds.
type Machine struct {
	vmm.Machine
	Guest vm.Session
	CPU   CPUMeter

	// Number tells the machine from all others that this hatchd has held.
	Number uint64

	reports chan *vm.GuestReport // the newest unread report; capacity 1
	watched bool                 // guarded by Registry.mu
	dropped chan struct{}        // closed when the registry forgets the machine; its watchers end
	silent  atomic.Bool          // it has not answered the last request in time
}

// answerTimeout is how long a VMM that counts as silent is given for one more answer.
const answerTimeout = 2 * time.Second

// Silent reports whether the VMM has not answered hatchd's last request in time, and
// does not answer another one now.
func (m *Machine) Silent(ctx context.Context) bool {
	if !m.silent.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := m.Health(ctx)
	return vmm.IsSilent(err)
}

// Registry holds machines by VM id.
type Registry struct {
	drivers  map[string]vmm.Driver // by Info().Name
	guests   vm.Guests
	consoles vm.ConsoleReader
	bootID   func() string // of the host
	log      *slog.Logger

	heartbeat Heartbeat

	handlers Handlers // these three are set by Handle
	start    func(watch func())
	closing  <-chan struct{}

	mu       sync.Mutex
	machines map[string]*Machine
	joined   uint64 // machines so far
}

// Config is what a registry needs. All fields are required.
type Config struct {
	Drivers  map[string]vmm.Driver
	Guests   vm.Guests
	Consoles vm.ConsoleReader
	BootID   func() string // changes when the host is restarted
	Log      *slog.Logger

	Heartbeat Heartbeat
}

// New returns an empty registry.
func New(cfg Config) *Registry {
	return &Registry{
		drivers: cfg.Drivers, guests: cfg.Guests, consoles: cfg.Consoles, bootID: cfg.BootID, log: cfg.Log,
		heartbeat: cfg.Heartbeat,
		machines:  map[string]*Machine{},
	}
}

// Mode says how far Get goes to find a VM's machine.
type Mode int

const (
	// Held returns only a machine that this hatchd holds.
	Held Mode = iota
	// Adopt also adopts a machine that the row names and this hatchd does not
	// hold yet. What such a process uses must not be given away while it lives.
	// Precondition: the VM's lock is held.
	Adopt
)

// Get returns the VM's machine, or nil when no process of it lives.
//
// Errors, with Adopt only: errs.Conflict with code vm_half_copied for a clone
// that has not taken its own identity; errs.Unavailable with code
// vmm_unresponsive when the process lives and cannot be adopted.
func (r *Registry) Get(ctx context.Context, v vm.VM, mode Mode) (*Machine, error) {
	if mode == Held {
		return r.held(v.ID), nil
	}
	if v.Unconfirmed != "" {
		return nil, errs.New(errs.Conflict, "vm_half_copied", "VM %s is unusable: cloning failed before the guest took its new identity", v.ID).
			WithHint("delete the VM")
	}
	if m := r.held(v.ID); m != nil || v.Machine == nil {
		return m, nil
	}
	m, err := r.AdoptMachine(ctx, v, *v.Machine)
	switch {
	case errs.Is(err, errs.NotFound):
		return nil, nil
	case err != nil:
		return nil, errs.New(errs.Unavailable, "vmm_unresponsive", "cannot operate on VM %s: its VMM process is running but not responding", v.ID).
			WithHint("try again; hatchd's log says what is wrong with process %d", v.Machine.PID).WithCause(err)
	}
	r.Watch(v.ID, m)
	return m, nil
}

// Running is Get with Adopt for an operation that needs a machine; verb names
// the operation in the error. Errors: Get's; errs.Conflict with code vm_not_running.
func (r *Registry) Running(ctx context.Context, v vm.VM, verb string) (*Machine, error) {
	m, err := r.Get(ctx, v, Adopt)
	if m != nil || err != nil {
		return m, err
	}
	hint := "start it first"
	if v.Asleep() {
		hint = "wake it first"
	}
	return nil, errs.New(errs.Conflict, "vm_not_running", "cannot %s VM %s: it is %s", verb, v.ID, v.State).WithHint("%s", hint)
}

func (r *Registry) held(id string) *Machine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machines[id]
}

// Current returns the machine that this hatchd holds of the VM, or nil.
func (r *Registry) Current(id string) *Machine { return r.held(id) }

// Holds reports whether this hatchd holds a machine of the VM.
func (r *Registry) Holds(id string) bool { return r.held(id) != nil }

// Connect is a way to open the session with a guest's agent; vm.Guests has three.
type Connect func(vmID string, dial vm.DialAgent, observe vm.ObserveReport) vm.Session

// Join opens the console and the session of a machine that was just made or
// adopted, and holds it. On error nothing is open, and m is still the caller's.
func (r *Registry) Join(id string, m vmm.Machine, connect Connect) (*Machine, error) {
	console := func(ctx context.Context) (net.Conn, error) { return m.Dial(ctx, vmm.ChannelConsole) }
	if err := r.consoles.Open(id, console); err != nil {
		return nil, fmt.Errorf("cannot open the console: %w", err)
	}
	joined := &Machine{Machine: m, reports: make(chan *vm.GuestReport, 1), dropped: make(chan struct{})}
	agent := func(ctx context.Context) (net.Conn, error) { return m.Dial(ctx, vmm.ChannelAgent) }
	joined.Guest = connect(id, agent, joined.observe)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joined++
	joined.Number = r.joined
	r.machines[id] = joined
	return joined, nil
}

// Remove forgets the machine and reports whether it was still the VM's.
func (r *Registry) Remove(id string, m *Machine) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.machines[id] != m {
		return false
	}
	delete(r.machines, id)
	close(m.dropped)
	return true
}

// Disconnect closes the session with the guest and the console.
func (r *Registry) Disconnect(id string, m *Machine) {
	_ = m.Guest.Close()
	r.consoles.Close(id)
}

// Leave closes hatchd's side of a machine: session, console and handle. The
// VMM process, if it lives, keeps running.
func (r *Registry) Leave(id string, m *Machine) {
	r.Disconnect(id, m)
	_ = m.Close()
}

// Drop removes the machine and leaves it.
func (r *Registry) Drop(id string, m *Machine) {
	r.Remove(id, m)
	r.Leave(id, m)
}

// Close leaves all machines.
func (r *Registry) Close() {
	r.mu.Lock()
	machines := r.machines
	r.machines = map[string]*Machine{}
	r.mu.Unlock()
	for id, m := range machines {
		close(m.dropped)
		r.Leave(id, m)
	}
}

// IDs returns the ids of the VMs whose machines this hatchd holds.
func (r *Registry) IDs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.machines))
}

// KillAll kills all machines, and stores nothing.
func (r *Registry) KillAll(ctx context.Context) error {
	r.mu.Lock()
	machines := maps.Clone(r.machines)
	r.mu.Unlock()
	var failures []error
	for _, m := range machines {
		failures = append(failures, m.Kill(ctx))
	}
	return errors.Join(failures...)
}

var errNoMachine = errs.New(errs.NotFound, "no_machine", "no machine")

// find adopts a process through its driver. When the driver is not available
// only a restart of the host proves that the process is gone.
func (r *Registry) find(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	if h.PID == 0 {
		return nil, errNoMachine
	}
	if d, ok := r.drivers[h.Driver]; ok {
		return d.Adopt(ctx, h)
	}
	if h.BootID != r.bootID() {
		return nil, errNoMachine
	}
	return nil, vm.NoDriver(h.ID, h.Driver)
}

// AdoptMachine adopts the process of handle h as the VM's machine.
// Errors: errs.NotFound when there is none.
func (r *Registry) AdoptMachine(ctx context.Context, v vm.VM, h vmm.Handle) (*Machine, error) {
	m, err := r.find(ctx, h)
	if err != nil {
		return nil, err
	}
	connect := r.guests.Connect
	if v.Conditions.Agent.Reason == vm.ReasonWaking { // no agent was told yet that it slept
		connect = r.guests.Rejoin
	}
	joined, err := r.Join(v.ID, m, connect)
	if err != nil {
		_ = m.Close()
	}
	return joined, err
}

// Kill ends the process of a handle that this hatchd does not hold. The zero
// handle, and a process that is gone, are no error.
func (r *Registry) Kill(ctx context.Context, h vmm.Handle) error {
	m, err := r.find(ctx, h)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	return m.Kill(ctx)
}

// List returns the machines of ours that the drivers find below root, by VM id.
// A driver that cannot list its machines is an entry of failed, with the reason.
func (r *Registry) List(ctx context.Context, root string) (found map[string]vmm.Handle, failed map[string]error) {
	found, failed = map[string]vmm.Handle{}, map[string]error{}
	for name, d := range r.drivers {
		handles, err := d.List(ctx, root)
		if err != nil {
			r.log.Error("cannot list the machines of a driver; its VMs are left as they are", logkey.Driver, name, logkey.Error, err)
			failed[name] = fmt.Errorf("cannot list the machines of driver %s: %w", name, err)
		}
		for _, h := range handles {
			found[h.ID] = h
		}
	}
	return found, failed
}

// HostRestarted reports whether the host was restarted since h was made.
func (r *Registry) HostRestarted(h vmm.Handle) bool { return h.BootID != r.bootID() }
