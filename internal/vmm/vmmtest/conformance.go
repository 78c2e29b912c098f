// Package vmmtest is the conformance suite for drivers, which the fake driver passes
// too, and the console through which tests command a guest.
//
// The suite commands its guest over the serial console, with the lines that guest.go
// describes; a real driver boots the program of vmmtest/testguest or vmmtest/probe,
// which execute them. It is for tests only. Start at [Run].
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

// Harness is a driver under test, with the parts of the suite that differ between
// drivers.
type Harness struct {
	// Driver returns a new driver on this host. Each is like that of another daemon: it
	// does not know the machines that another driver started.
	Driver func(t *testing.T) vmm.Driver

	// Spec returns the spec of a new machine whose guest executes guest.go's lines, with
	// its own id, an existing run directory below Root and a file for its memory.
	Spec func(t *testing.T) vmm.Spec

	// Root is the directory with all run directories.
	Root string

	// Break makes the next start of the spec fail in the VMM.
	Break func(spec *vmm.Spec)

	// Crash ends the machine's VMM process with SIGKILL.
	Crash func(t *testing.T, h vmm.Handle)

	// Hang stops the machine's VMM process, so that it answers nothing; unhang lets it go
	// on.
	Hang func(t *testing.T, h vmm.Handle) (unhang func())

	// KeepMiB is the size, in MiB, of the data that one keep command makes in a guest's
	// memory. A guest has memory for four times that.
	KeepMiB int

	// Inspect checks running machines that were woken from one base; nil if the driver
	// has no such check.
	Inspect func(t *testing.T, machines []vmm.Handle)

	// Limits returns the limits that the VMM enforces for a machine.
	Limits func(t *testing.T, m vmm.Machine) vmm.RateLimits

	// Leftovers lists what an ended machine has left on the host.
	Leftovers func(spec vmm.Spec) []string
}

// timeout bounds every wait for an event. A test that waits this long fails.
const timeout = 2 * time.Minute

// conformance is a test of the suite.
type conformance struct {
	name string
	test func(*testing.T, Harness)
}

// Run runs the suite: all that every driver must do, with any VMM.
func Run(t *testing.T, h Harness) {
	tests := []conformance{
		{"a guest boots and answers on its console", testStart},
		{"a guest that powers off ends its machine", testPowerOff},
		{"a guest that reboots keeps its machine, or ends it with the cause reset", testReboot},
		{"a guest that panics ends its machine with the cause panic", testPanic},
		{"a paused guest does not run, and continues after a resume", testPause},
		{"counters never decrease, across adoption and reboot", testStats},
		{"killing ends the machine at once", testKill},
		{"the power button shuts the guest down", testPowerButton},
		{"a guest may ignore the power button", testIgnoredPowerButton},
		{"a crash of the VMM is the cause of the exit", testCrash},
		{"a start that fails leaves nothing", testFailedStart},
		{"a cancelled start leaves nothing", testCancelledStart},
		{"the agent's channel reaches the guest", testAgentChannel},
		{"a second dial ends the first", testSecondDial},
		{"a machine outlives its daemon and is adopted by the next", testAdoption},
		{"the exit of an adopted machine is observed", testAdoptedEnd},
		{"a handle that does not match the process is not adopted", testForeignHandles},
		{"the list has only machines below the root", testList},
		{"health says whether the CPUs run", testHealth},
		{"health waits for a VMM that hangs", testHang},
		{"a VMM that hangs is adopted, and can be killed", testAdoptedHang},
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
	closed  bool
}

// close closes the machine as a daemon does on shutdown.
func (m *started) close(t *testing.T) {
	t.Helper()
	m.closed = true
	if err := m.Close(); err != nil {
		t.Fatalf("cannot close: %v", err)
	}
}

// start starts a machine and connects its console. At the end of the test it kills
// the machine, unless that was closed, and checks that nothing is left on the host.
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
		if !s.closed {
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
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
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

func requireExit(t *testing.T, m vmm.Machine, want vmm.ExitCause) vmm.Exit {
	t.Helper()
	select {
	case <-m.Exited():
	case <-time.After(timeout):
		t.Fatal("the machine does not end")
	}
	exit := m.Exit()
	if exit.Cause != want {
		t.Errorf("the cause of the exit is %s (%s), want %s", exit.Cause, exit.Detail, want)
	}
	if exit.At.IsZero() || time.Since(exit.At) > timeout {
		t.Errorf("the time of the exit is %v", exit.At)
	}
	requireGone(t, m)
	return exit
}

// requireGone checks the contract of a machine after its exit.
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
		t.Error("Exited is closed while the machine runs")
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
		t.Errorf("the greeting after the reboot is that of the first boot: %s", first)
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
	last := m.console.awaitSilence(10 * tickEvery)
	for range 2 {
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// The next line has the next number: the guest did not count during the pause.
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

func testIgnoredPowerButton(t *testing.T, h Harness) {
	d, m := boot(t, h)
	if !d.Info().Capabilities.PowerButton {
		return // refused: testPowerButton checks it
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
		t.Errorf("%d descriptors are open after the start, and %d were before", after, before)
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
