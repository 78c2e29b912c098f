// Package driver is a fake vmm.Driver: its machines are goroutines, without
// processes, root or a kernel.
//
// NO GUEST CODE RUNS. A guest greets and obeys on its console as the test
// guests of internal/vmm/vmmtest do, and the driver passes the conformance
// suite there. For tests and cmd/hatchd-fake only. Start at [New].
package driver

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Name is what Info().Name says; rows and manifests hold it.
const Name = "fake"

// firstPID is above every process id that Linux gives out.
const firstPID = 1 << 23

// Driver implements vmm.Driver. Guests boot at once and power off on the power
// button. Calls: Start, Wake, Check, Adopt and List; of its machines: Save, Resume
// and Kill.
type Driver struct {
	Calls        *fake.Calls
	Version      string           // of the VMM program that it claims to run
	Capabilities vmm.Capabilities // New sets all that it has
	GuestMemory  vmm.GuestMemory  // what all guests' kernels report

	host  *host
	agent func(vmID string, conn net.Conn)
}

var _ vmm.Driver = (*Driver)(nil)

// host is the state that outlives a driver: the machines of one fake host.
type host struct {
	mu      sync.Mutex
	guests  map[string]*guest // by VM id; a guest whose machine ended stays until replaced
	lastPID int
	deaf    map[string]bool // VMs whose guests ignore the power button
}

// Option changes a driver when it is made.
type Option func(*Driver)

// WithAgent lets serve speak for the agent of each guest: it gets the guest's
// end of every connection to the agent channel, and returns once that
// connection is closed. Without it the agent sends back each line it gets.
func WithAgent(serve func(vmID string, conn net.Conn)) Option {
	return func(d *Driver) { d.agent = serve }
}

// New returns a driver with a host of its own.
func New(opts ...Option) *Driver {
	d := &Driver{
		Calls: &fake.Calls{}, Version: "1.0",
		Capabilities: vmm.Capabilities{Pause: true, PowerButton: true, Save: true, Base: true, Reboot: true, DiskLimits: true, NetworkLimits: true},

		host:  &host{guests: map[string]*guest{}, deaf: map[string]bool{}},
		agent: func(_ string, conn net.Conn) { echoLines(conn) },
	}
	for _, opt := range opts {
		opt(d)
	}
	return d
}

// Again returns another driver over the same host, as after a restart of hatchd.
func (d *Driver) Again() *Driver {
	again := *d
	return &again
}

// IgnorePowerButton makes the VM's guest ignore its power button.
func (d *Driver) IgnorePowerButton(vmID string) {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	d.host.deaf[vmID] = true
}

// Limits returns the rate limits that the VM's machine was started with.
func (d *Driver) Limits(vmID string) vmm.RateLimits {
	if g := d.host.guest(vmID); g != nil {
		return g.limits
	}
	return vmm.RateLimits{}
}

// PowerOff lets the VM's guest power itself off.
func (d *Driver) PowerOff(vmID string) { d.end(vmID, vmm.ExitShutdown, "") }

// Panic lets the VM's guest kernel panic.
func (d *Driver) Panic(vmID string) { d.end(vmID, vmm.ExitPanic, "") }

// Crash ends the VM's machine like a VMM that is killed by a signal.
func (d *Driver) Crash(vmID string) { d.end(vmID, vmm.ExitCrashed, "killed by signal 9") }

// Reset lets the guest reboot itself, which ends the machine.
func (d *Driver) Reset(vmID string) { d.end(vmID, vmm.ExitReset, "") }

func (d *Driver) end(vmID string, cause vmm.ExitCause, detail string) {
	if g := d.host.guest(vmID); g != nil {
		g.end(vmm.Exit{Cause: cause, Detail: detail, At: time.Now()})
	}
}

// Info implements vmm.Driver.
func (d *Driver) Info() vmm.Info {
	return vmm.Info{
		Name: Name, Version: d.Version, CPU: cpu, Why: "machines are fake; no guest code runs",
		Capabilities: d.Capabilities,
	}
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	if spec.NIC != nil && spec.NIC.TAP != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := errors.Join(ctx.Err(), d.Calls.Begin("Start")); err != nil {
		return nil, err
	}
	g, err := d.host.boot(spec, d.Version)
	if err != nil {
		return nil, err
	}
	return newMachine(g, d), nil
}

func (h *host) boot(spec vmm.Spec, version string) (*guest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.guests[spec.ID]; old != nil && !old.gone() {
		return nil, errs.New(errs.Conflict, "machine_runs", "cannot start %s: it runs already", spec.ID)
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	h.lastPID++
	g := newGuest(vmm.Handle{
		Driver: Name, ID: spec.ID, PID: firstPID + h.lastPID, StartTime: uint64(h.lastPID),
		BootID: strings.TrimSpace(string(bootID)), Exe: "/fake", Dir: spec.Dir, Version: version,
	}, func() bool { return h.isDeaf(spec.ID) })
	g.limits = spec.Limits
	h.guests[spec.ID] = g
	return g, nil
}

func (h *host) isDeaf(vmID string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deaf[vmID]
}

func (h *host) guest(vmID string) *guest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.guests[vmID]
}

// Adopt implements vmm.Driver.
func (d *Driver) Adopt(_ context.Context, h vmm.Handle) (vmm.Machine, error) {
	if err := d.Calls.Begin("Adopt"); err != nil {
		return nil, err
	}
	g := d.host.guest(h.ID)
	if g == nil || g.gone() {
		return nil, errNoMachine(h.ID)
	}
	if h.Version == "" { // as List gives it
		h.Version = g.handle.Version
	}
	if g.handle != h {
		return nil, errNoMachine(h.ID)
	}
	return newMachine(g, d), nil
}

func errNoMachine(vmID string) error {
	return errs.New(errs.NotFound, "machine_gone", "the machine of %s is gone", vmID)
}

// List implements vmm.Driver.
func (d *Driver) List(_ context.Context, root string) ([]vmm.Handle, error) {
	if err := d.Calls.Begin("List"); err != nil {
		return nil, err
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	var found []vmm.Handle
	for _, g := range d.host.guests {
		if rel, err := filepath.Rel(root, g.handle.Dir); err == nil && rel != "." && filepath.IsLocal(rel) && !g.gone() {
			h := g.handle
			h.Version = "" // as a process alone does not tell it
			found = append(found, h)
		}
	}
	slices.SortFunc(found, func(a, b vmm.Handle) int { return a.PID - b.PID })
	return found, nil
}
