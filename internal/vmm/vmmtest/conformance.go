package vmmtest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Harness is a driver under the conformance suite, with what the suite cannot
// know of it.
type Harness struct {
	// Driver returns a driver over this host. Each is as another daemon's: it
	// knows nothing of the machines that another one started.
	Driver func(t *testing.T) vmm.Driver

	// Spec returns what to start: a guest that obeys guest.go's lines, with
	// its own id, an existing run directory below Root and a file for its memory.
	Spec func(t *testing.T) vmm.Spec

	// Root is the directory below which all run directories lie.
	Root string

	// Break makes the next start of the spec fail in the VMM.
	Break func(spec *vmm.Spec)

	// Crash ends the machine's VMM as a crash does.
	Crash func(t *testing.T, h vmm.Handle)

	// KeepMiB is how much a guest is told to keep in its memory at a time, in
	// MiB; it has room for four times that.
	KeepMiB int

	// Look looks at machines that were woken from one base and run; nil when
	// there is nothing to see.
	Look func(t *testing.T, machines []vmm.Handle)

	// Limits asks the VMM itself what it holds a guest to.
	Limits func(t *testing.T, m vmm.Machine) vmm.RateLimits

	// Leftovers lists what of a machine that is gone is still on the host.
	Leftovers func(spec vmm.Spec) []string
}

// patience bounds every wait for an event. A test that has to wait this long
// fails.
const patience = 2 * time.Minute

// conformance is one thing that every driver has to do.
type conformance struct {
	name string
	test func(*testing.T, Harness)
}

// Run is what every driver has to do, whichever VMM it drives.
func Run(t *testing.T, h Harness) {
	tests := []conformance{
		{"a guest boots and answers on its console", testStart},
		{"a guest that powers off ends its machine", testPowerOff},
		{"a guest that reboots keeps its machine, or ends it and the cause is told", testReboot},
		{"a guest that panics ends its machine, and the cause is told", testPanic},
		{"a paused guest stands still and then goes on", testPause},
		{"what a machine uses only grows, across adoption and reboot", testStats},
		{"killing ends the machine at once", testKill},
		{"the power button shuts the guest down", testPowerButton},
		{"a guest may ignore the power button", testDeafGuest},
		{"a crash of the VMM is told as such", testCrash},
		{"a start that fails leaves nothing", testFailedStart},
		{"a start that nobody waits for leaves nothing", testCancelledStart},
		{"the agent's channel reaches the guest", testAgentChannel},
		{"a second dial ends the first", testSecondDial},
		{"a machine outlives its daemon and is adopted by the next", testAdoption},
		{"an adopted machine's end is noticed", testAdoptedEnd},
		{"a machine that is not the one of the handle is not adopted", testForeignHandles},
		{"the list shows machines below the root only", testList},
	}
	tests = append(tests, limitTests...)
	if h.Driver(t).Info().Capabilities.Save {
		tests = append(append(tests, saveTests...), baseTests...)
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

// started is a running machine with its console.
type started struct {
	vmm.Machine
	spec    vmm.Spec
	console *Console
	isLetGo bool
}

// letGo closes the machine as a daemon that ends does.
func (m *started) letGo(t *testing.T) {
	t.Helper()
	m.isLetGo = true
	if err := m.Close(); err != nil {
		t.Fatalf("cannot let go: %v", err)
	}
}

// start starts a machine and connects its console. At the end of the test a
// machine that was not let go is killed, and the host must be clean.
func start(t *testing.T, h Harness) (vmm.Driver, *started) {
	t.Helper()
	d, spec := h.Driver(t), h.Spec(t)
	began := time.Now()
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("cannot start: %v", err)
	}
	t.Logf("start returned after %s", time.Since(began).Round(time.Millisecond))
	s := &started{Machine: m, spec: spec}
	t.Cleanup(func() {
		if !s.isLetGo {
			end(t, h, m, spec)
		}
	})
	s.console = DialConsole(t, m)
	return d, s
}

// boot starts a machine and waits until its guest is ready.
func boot(t *testing.T, h Harness) (vmm.Driver, *started) {
	t.Helper()
	began := time.Now()
	d, m := start(t, h)
	m.console.Expect(greeting)
	t.Logf("the guest was ready after %s", time.Since(began).Round(time.Millisecond))
	return d, m
}

func end(t *testing.T, h Harness, m vmm.Machine, spec vmm.Spec) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.Kill(ctx); err != nil {
		t.Errorf("cannot kill: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("cannot close: %v", err)
	}
	requireNothingLeft(t, h, spec)
}

func requireNothingLeft(t *testing.T, h Harness, spec vmm.Spec) {
	t.Helper()
	if left := h.Leftovers(spec); len(left) > 0 {
		t.Errorf("left on the host: %s", strings.Join(left, ", "))
	}
}

func awaitExit(t *testing.T, m vmm.Machine) vmm.Exit {
	t.Helper()
	select {
	case <-m.Exited():
		return m.Exit()
	case <-time.After(patience):
		t.Fatal("the machine does not end")
		return vmm.Exit{}
	}
}

func requireExit(t *testing.T, m vmm.Machine, want vmm.ExitCause) vmm.Exit {
	t.Helper()
	exit := awaitExit(t, m)
	if exit.Cause != want {
		t.Errorf("the exit is told as %s (%s), want %s", exit.Cause, exit.Detail, want)
	}
	if exit.At.IsZero() || time.Since(exit.At) > patience {
		t.Errorf("the exit is said to be at %v", exit.At)
	}
	requireGone(t, m)
	return exit
}

// requireGone checks what the contract says of a machine after its exit.
func requireGone(t *testing.T, m vmm.Machine) {
	t.Helper()
	ctx := t.Context()
	_, dialErr := m.Dial(ctx, vmm.ChannelConsole)
	_, pausedErr := m.Paused(ctx)
	_, statsErr := m.Stats(ctx)
	for name, err := range map[string]error{
		"Dial": dialErr, "Paused": pausedErr, "Stats": statsErr, "Pause": m.Pause(ctx), "Resume": m.Resume(ctx), "PowerButton": m.PowerButton(ctx),
	} {
		if !errs.Is(err, errs.NotFound) {
			t.Errorf("%s of a machine that is gone: %v, want not found", name, err)
		}
	}
	if err := m.Kill(ctx); err != nil {
		t.Errorf("Kill of a machine that is gone: %v", err)
	}
}

func testStart(t *testing.T, h Harness) {
	d, m := boot(t, h)
	m.console.Say("echo one two")
	m.console.Expect("echo: one two")
	got := m.Handle()
	if got.Driver != d.Info().Name || got.ID != m.spec.ID || got.Dir != m.spec.Dir || got.PID <= 0 || got.BootID == "" || got.StartTime == 0 {
		t.Errorf("incomplete handle %+v", got)
	}
	if paused, err := m.Paused(t.Context()); err != nil || paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
	select {
	case <-m.Exited():
		t.Error("said to be gone while it runs")
	default:
	}
}

func testPowerOff(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("poweroff")
	requireExit(t, m, vmm.ExitShutdown)
}

func testReboot(t *testing.T, h Harness) {
	d, m := start(t, h)
	first := m.console.Expect(greeting)
	m.console.Say("reboot")
	if !d.Info().Capabilities.Reboot {
		requireExit(t, m, vmm.ExitReset)
		requireNothingLeft(t, h, m.spec)
		return
	}
	if second := m.console.Expect(greeting); second == first {
		t.Errorf("greeted twice by the same boot: %s", first)
	}
	m.console.Say("echo again")
	m.console.Expect("echo: again")
}

func testPanic(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("panic")
	requireExit(t, m, vmm.ExitPanic)
}

func testPause(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	for range 2 { // pausing twice is no error
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if paused, err := m.Paused(t.Context()); err != nil || !paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
	last := m.console.untilSilent(10 * tickEvery)
	for range 2 {
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// The line that comes next is the next number: nothing was counted meanwhile.
	m.console.Expect(nextTick(t, last))
	if paused, err := m.Paused(t.Context()); err != nil || paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
}

func testKill(t *testing.T, h Harness) {
	_, m := start(t, h)
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Exited():
	default:
		t.Fatal("Kill returned before the machine was gone")
	}
	requireExit(t, m, vmm.ExitKilled)
	requireNothingLeft(t, h, m.spec)
}

func testPowerButton(t *testing.T, h Harness) {
	d, m := boot(t, h)
	if !d.Info().Capabilities.PowerButton {
		requireRefused(t, m.PowerButton(t.Context()), errs.Unsupported)
		return
	}
	if err := m.PowerButton(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireExit(t, m, vmm.ExitShutdown)
}

func testDeafGuest(t *testing.T, h Harness) {
	d, m := boot(t, h)
	if !d.Info().Capabilities.PowerButton {
		return // refused, as the test before has shown
	}
	m.console.Say("deaf")
	m.console.Expect("deaf: ok")
	if err := m.PowerButton(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.console.Say("echo still here")
	m.console.Expect("echo: still here")
}

func testCrash(t *testing.T, h Harness) {
	_, m := start(t, h)
	h.Crash(t, m.Handle())
	if exit := requireExit(t, m, vmm.ExitCrashed); !strings.Contains(exit.Detail, "killed by signal 9") {
		t.Errorf("the detail is %q", exit.Detail)
	}
	requireNothingLeft(t, h, m.spec)
}

func testFailedStart(t *testing.T, h Harness) {
	d, spec := h.Driver(t), h.Spec(t)
	before := openDescriptors(t)
	h.Break(&spec)
	m, err := d.Start(t.Context(), spec)
	if err == nil {
		end(t, h, m, spec)
		t.Fatal("it started")
	}
	requireRefused(t, err, errs.Internal)
	requireNothingLeft(t, h, spec)
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors are open, before it were %d", after, before)
	}
}

func testCancelledStart(t *testing.T, h Harness) {
	d, spec := h.Driver(t), h.Spec(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := d.Start(ctx, spec)
	if err == nil {
		end(t, h, m, spec)
		t.Fatal("it started")
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	requireNothingLeft(t, h, spec)
}

func requireRefused(t *testing.T, err error, want errs.Kind) {
	t.Helper()
	if !errs.Is(err, want) {
		t.Errorf("the error is %v, want the kind %s", err, want)
	}
}

// openDescriptors counts this process's open files.
func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
