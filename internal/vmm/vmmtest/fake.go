// Package vmmtest holds what tests of machines share: [Fake], a driver without
// processes, root or a kernel, and [Run], the conformance suite that every
// driver passes, the fake included.
//
// The suite speaks to its guest over the serial console, in the lines that
// guest.go describes; the fake's guest obeys them itself, and a real driver
// boots the program of vmmtest/testguest, which obeys the same lines.
// hatchd also runs the fake, for scripts and demonstrations (HATCH_VMM=fake).
package vmmtest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// fakeVersion is the version of the VMM program that the fake claims to run.
const fakeVersion = "1.0"

// Fake is a driver whose machines are a few goroutines. Guests boot at once,
// greet and obey on the console, and power off on the power button.
type Fake struct {
	host  *fakeHost
	agent func(vmID string, conn net.Conn)
}

// fakeHost is what outlives a driver: the machines of one pretended host.
type fakeHost struct {
	mu       sync.Mutex
	guests   map[string]*guest // by VM id; those that are gone stay until replaced
	lastPID  int
	nextFail error
	deaf     map[string]bool // guests that ignore the power button
}

// FakeOption changes a fake when it is made.
type FakeOption func(*Fake)

// WithAgent lets serve speak for the agent of each guest: it gets the guest's
// end of every connection to the agent channel, and returns once that
// connection is closed. Without it the agent sends back each line it gets.
func WithAgent(serve func(vmID string, conn net.Conn)) FakeOption {
	return func(f *Fake) { f.agent = serve }
}

// NewFake returns a fake driver with a host of its own.
func NewFake(opts ...FakeOption) *Fake {
	f := &Fake{
		host:  &fakeHost{guests: map[string]*guest{}, deaf: map[string]bool{}},
		agent: func(_ string, conn net.Conn) { echoLines(conn) },
	}
	for _, opt := range opts {
		opt(f)
	}
	return f
}

// Again returns another driver over the same host, as the next daemon has it.
func (f *Fake) Again() *Fake { return &Fake{host: f.host, agent: f.agent} }

// FailNextStart makes the next Start return err.
func (f *Fake) FailNextStart(err error) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	f.host.nextFail = err
}

// IgnorePowerButton makes the VM's guest deaf to its power button.
func (f *Fake) IgnorePowerButton(vmID string) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	f.host.deaf[vmID] = true
}

// Limits are those that the VM's machine was started with.
func (f *Fake) Limits(vmID string) vmm.RateLimits {
	if g := f.host.guest(vmID); g != nil {
		return g.limits
	}
	return vmm.RateLimits{}
}

// PowerOff lets the VM's guest power itself off.
func (f *Fake) PowerOff(vmID string) { f.end(vmID, vmm.ExitShutdown, "") }

// Panic lets the VM's guest kernel panic.
func (f *Fake) Panic(vmID string) { f.end(vmID, vmm.ExitPanic, "") }

// Crash ends the VM's machine as a VMM that dies of a signal.
func (f *Fake) Crash(vmID string) { f.end(vmID, vmm.ExitCrashed, "killed by signal 9") }

func (f *Fake) end(vmID string, cause vmm.ExitCause, detail string) {
	if g := f.host.guest(vmID); g != nil {
		g.end(vmm.Exit{Cause: cause, Detail: detail, At: time.Now()})
	}
}

// Info implements vmm.Driver.
func (f *Fake) Info() vmm.Info {
	return vmm.Info{
		Name: "fake", Version: fakeVersion, CPU: fakeSaved.CPU, Why: "machines are pretended; no guest code runs",
		Capabilities: vmm.Capabilities{Pause: true, PowerButton: true, Save: true, Base: true, Reboot: true, DiskLimits: true, NetworkLimits: true},
	}
}

// Start implements vmm.Driver.
func (f *Fake) Start(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	if spec.NIC != nil && spec.NIC.TAP != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g, err := f.host.boot(spec)
	if err != nil {
		return nil, err
	}
	return newFakeMachine(g, f.agent), nil
}

func (h *fakeHost) boot(spec vmm.Spec) (*guest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.nextFail; err != nil {
		h.nextFail = nil
		return nil, err
	}
	if old := h.guests[spec.ID]; old != nil && !old.gone() {
		return nil, errs.New(errs.Conflict, "machine_runs", "cannot start %s: it runs already", spec.ID)
	}
	h.lastPID++
	g := newGuest(vmm.Handle{
		Driver: "fake", ID: spec.ID, PID: fakePIDs + h.lastPID, StartTime: uint64(h.lastPID),
		BootID: bootID(), Exe: "/fake", Dir: spec.Dir, Version: fakeVersion,
	}, func() bool { return h.isDeaf(spec.ID) })
	g.limits = spec.Limits
	h.guests[spec.ID] = g
	return g, nil
}

// fakePIDs is above every process id that Linux gives out.
const fakePIDs = 1 << 23

func (h *fakeHost) isDeaf(vmID string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deaf[vmID]
}

func (h *fakeHost) guest(vmID string) *guest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.guests[vmID]
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// Adopt implements vmm.Driver.
func (f *Fake) Adopt(_ context.Context, h vmm.Handle) (vmm.Machine, error) {
	g := f.host.guest(h.ID)
	if g == nil || g.handle != h || g.gone() {
		return nil, errNoMachine(h.ID)
	}
	return newFakeMachine(g, f.agent), nil
}

func errNoMachine(vmID string) error {
	return errs.New(errs.NotFound, "machine_gone", "the machine of %s is gone", vmID)
}

// List implements vmm.Driver.
func (f *Fake) List(_ context.Context, root string) ([]vmm.Handle, error) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	var found []vmm.Handle
	for _, g := range f.host.guests {
		if !g.gone() && isBelow(root, g.handle.Dir) {
			found = append(found, g.handle)
		}
	}
	slices.SortFunc(found, func(a, b vmm.Handle) int { return a.PID - b.PID })
	return found, nil
}

func isBelow(root, dir string) bool {
	rel, err := filepath.Rel(root, dir)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}
