package lifecycle_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/hostpower"
)

// takeDown shuts the host down, as far as VMs see it.
func (w *world) takeDown(t *testing.T) {
	t.Helper()
	w.RefuseStarts()
	if err := w.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if machines, err := w.driver.List(t.Context(), "/"); err != nil || len(machines) > 0 {
		t.Errorf("machines are left: %v, %v", machines, err)
	}
}

// restartHost ends hatchd, and everything that does not outlive the host, and
// starts both again. VMs may still be coming back when it returns.
func (w *world) restartHost(t *testing.T) {
	t.Helper()
	w.shut(t)
	w.loseRAM(t)
	w.serve(t)
}

// configure starts hatchd again with other settings.
func (w *world) configure(t *testing.T, change func()) {
	t.Helper()
	w.shut(t)
	change()
	w.serve(t)
}

func (w *world) loseRAM(t *testing.T) {
	t.Helper()
	machines, err := w.driver.List(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		w.driver.Crash(m.ID)
	}
	held, err := w.memories.Held()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range held {
		if err := w.memories.Release(id); err != nil {
			t.Fatal(err)
		}
	}
	w.bootID += "another boot"
}

// restartHostTwice is restartHost, and returns once no VM is coming back any more.
func (w *world) restartHostTwice(t *testing.T) {
	t.Helper()
	w.restartHost(t)
	w.shut(t) // waits for those that come back
	w.serve(t)
}

func (w *world) awaitState(t *testing.T, id string, want vm.State) vm.VM {
	t.Helper()
	v, err := w.Wait(t.Context(), access.Owner(owner), id, vm.WaitFor{State: want})
	if err != nil {
		t.Fatalf("%v; it is %+v", err, get(t, w, id))
	}
	return v
}

func requireDown(t *testing.T, v vm.VM, state vm.State, back vm.Autostart, says string) {
	t.Helper()
	if v.State != state || v.Autostart != back || !strings.Contains(v.StateReason, says) {
		t.Errorf("it is %s (%s), to come back %q; want %s (%s), %q", v.State, v.StateReason, v.Autostart, state, says, back)
	}
	if _, legal := v.Phase(); !legal {
		t.Errorf("it is in no legal phase: %+v", v)
	}
	if state == vm.Snapshotted && (v.Sleep == nil || !v.Sleep.Durable) {
		t.Errorf("its memory is not on disk: %+v", v.Sleep)
	}
}

func TestVMsGoDownAndComeBackWithTheHost(t *testing.T) {
	full := errs.New(errs.Exhausted, "disk_full", "the disk is full")
	asleep := []string{"hatchd state_changed snapshotted", "hatchd slept", "hatchd operation sleep succeeded", "hatchd state_changed starting", "hatchd state_changed running", "hatchd woke", "hatchd operation wake succeeded"}
	stopped := []string{"hatchd state_changed stopping", "hatchd state_changed stopped", "hatchd operation stop succeeded", "hatchd state_changed starting", "hatchd state_changed running", "hatchd operation start succeeded"}
	for name, c := range map[string]struct {
		prepare func(w *world)
		state   vm.State
		says    string
		story   []string
	}{
		"sleep":             {func(*world) {}, vm.Snapshotted, "for the shutdown of the host", asleep},
		"stop":              {func(w *world) { w.hostPower.Policy = hostpower.Stop }, vm.Stopped, "for the shutdown of the host", stopped},
		"no room on disk":   {func(w *world) { w.calls.Fail("Prepare", 1, full) }, vm.Stopped, "the disk is full", append([]string{"hatchd operation sleep failed"}, stopped...)},
		"no save of guests": {func(w *world) { w.driver.Capabilities.Save = false }, vm.Stopped, "cannot save guests", stopped},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.shut(t)
			c.prepare(w)
			w.serve(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.takeDown(t)
			requireDown(t, get(t, w, v.ID), c.state, vm.AutostartRunning, c.says)
			w.restartHost(t)
			w.awaitState(t, v.ID, vm.Running)
			w.shut(t) // the operation has ended
			w.serve(t)
			if now := get(t, w, v.ID); now.Autostart != vm.NoAutostart || now.Lease.Address != v.Lease.Address {
				t.Errorf("it is back as %+v", now)
			}
			story := slices.DeleteFunc(w.story(t, v.ID), func(line string) bool { return strings.Contains(line, "condition") })
			requireStory(t, story[3:], c.story...)
		})
	}
}

// What another version of the VMM has saved could never be woken.
func TestAVMOfAnotherVersionIsStoppedWithTheHost(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.Version = "2.0"
	w.takeDown(t)
	requireDown(t, get(t, w, v.ID), vm.Stopped, vm.AutostartRunning, "2.0 is installed")
	w.restartHost(t)
	w.awaitState(t, v.ID, vm.Running)
}

func TestAPausedVMComesBackPaused(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.takeDown(t)
	requireDown(t, get(t, w, v.ID), vm.Snapshotted, vm.AutostartPaused, "for the shutdown of the host")
	w.restartHost(t)
	w.awaitState(t, v.ID, vm.Paused)
}

// What is not down in time is killed, while an operation that hangs holds its lock.
func TestVMsThatAreNotDownInTimeAreKilled(t *testing.T) {
	for name, prepare := range map[string]func(w *world, id string, killed chan struct{}){
		"a save that hangs": func(w *world, _ string, killed chan struct{}) {
			w.calls.Before("Save", func() { <-killed })
			w.calls.Fail("Save", 1, errors.New("injected: the VMM is gone"))
		},
		"a guest that ignores the stop": func(w *world, id string, _ chan struct{}) {
			w.hostPower.Policy = hostpower.Stop
			w.driver.IgnorePowerButton(id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.shut(t)
			w.hostPower.Timeout = 100 * time.Millisecond // less than the 200 of a stop
			killed := make(chan struct{})
			w.calls.Before("Kill", sync.OnceFunc(func() { close(killed) }))
			prepare(w, v.ID, killed)
			w.serve(t)
			w.takeDown(t)
			requireDown(t, get(t, w, v.ID), vm.Stopped, vm.AutostartRunning, "killed for the shutdown of the host: the VM was not down within 100ms")
			w.restartHost(t)
			w.awaitState(t, v.ID, vm.Running)
		})
	}
}

// A database that has ended before hatchd keeps no VMM alive, and the guests are
// asked all the same.
func TestVMsGoDownWithoutTheDatabase(t *testing.T) {
	w := newWorld(t)
	w.configure(t, func() { w.hostPower.Timeout = time.Second })
	v := mustCreate(t, w, vm.CreateRequest{})
	w.RefuseStarts()
	w.calls.Fail("UpdateVM", 1000, errors.New("injected: no database"))
	w.calls.Fail("AllVMs", 1000, errors.New("injected: no database"))
	if err := w.Down(t.Context()); err == nil || !strings.Contains(err.Error(), "no database") {
		t.Errorf("got %v", err)
	}
	if machines, err := w.driver.List(t.Context(), "/"); err != nil || len(machines) > 0 {
		t.Errorf("machines are left: %v, %v", machines, err)
	}
	if w.calls.Count("PowerButton") == 0 {
		t.Error("the guest was not asked to shut down")
	}
	w.shut(t)
	w.calls.Withdraw("UpdateVM")
	w.calls.Withdraw("AllVMs")
	w.bootID = "another boot"
	w.serve(t)
	w.awaitState(t, v.ID, vm.Running)
}

// The memory of VMs that sleep on request is on disk before the host goes, and
// they are not woken.
func TestVMsAsleepOnRequestStayAsleep(t *testing.T) {
	w := newWorld(t)
	w.holdPersist = make(chan struct{})
	v := asleep(t, w)
	awake := mustCreate(t, w, vm.CreateRequest{})
	w.calls.Before("AllVMs", sync.OnceFunc(func() { close(w.holdPersist) }))
	w.takeDown(t)
	requireDown(t, get(t, w, v.ID), vm.Snapshotted, vm.NoAutostart, "on request")
	w.restartHostTwice(t)
	requireDown(t, get(t, w, v.ID), vm.Snapshotted, vm.NoAutostart, "on request")
	w.awaitState(t, awake.ID, vm.Running)
}

// A full disk is not waited for, and a VM whose memory is lost boots.
func TestMemoryThatNeverReachesTheDisk(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.calls.Fail("Persist", 1000, errs.New(errs.Exhausted, "disk_full", "the disk is full"))
	began := time.Now()
	w.takeDown(t)
	if took := time.Since(began); took >= w.hostPower.Timeout {
		t.Errorf("it took %s, all of the time that there is", took)
	}
	now := get(t, w, v.ID)
	if !now.Volatile() || now.Autostart != vm.AutostartRunning || now.StateReason != "put to sleep for the shutdown of the host; its memory is not on disk: the disk is full" {
		t.Errorf("it is %s (%s), sleep %+v, to come back %q", now.State, now.StateReason, now.Sleep, now.Autostart)
	}
	w.calls.Withdraw("Persist")
	w.restartHost(t)
	w.awaitState(t, v.ID, vm.Running)
	if w.calls.Count("Wake") != 0 {
		t.Error("it was woken from memory that is lost")
	}
}

// Memory that did not reach the disk in time is said not to be there, until it is.
func TestMemoryThatIsTooSlowForTheShutdown(t *testing.T) {
	w := newWorld(t)
	w.shut(t)
	w.hostPower.Timeout = 100 * time.Millisecond
	w.holdPersist = make(chan struct{})
	w.serve(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.takeDown(t)
	if now := get(t, w, v.ID); !now.Volatile() || !strings.HasSuffix(now.StateReason, "its memory is not on disk: it was not saved within 100ms") {
		t.Errorf("it is %s (%s), sleep %+v", now.State, now.StateReason, now.Sleep)
	}
	close(w.holdPersist) // the host went on
	awaitDurable(t, w, v.ID)
	if now := get(t, w, v.ID); now.StateReason != "put to sleep for the shutdown of the host" {
		t.Errorf("then it is %s (%s)", now.State, now.StateReason)
	}
}

// A save that waits for its next attempt when the shutdown begins gets one at once.
func TestTheShutdownTriesOnceMoreToSaveMemory(t *testing.T) {
	w := newWorld(t)
	w.calls.Fail("Persist", 1, errs.New(errs.Exhausted, "disk_full", "the disk is full"))
	v := asleep(t, w)
	awaitCalls(t, w, "Persist", 1)
	w.takeDown(t)
	requireDown(t, get(t, w, v.ID), vm.Snapshotted, vm.NoAutostart, "on request")
}

// awaitCalls waits until a call was made so many times, and has returned.
func awaitCalls(t *testing.T, w *world, name string, times int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); w.calls.Count(name) < times; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s was called %d times", name, w.calls.Count(name))
		}
	}
}

// The room on the disk is compared with what one VM needs, so the memory of those
// before it must be there already. The VM that finds no room is stopped.
func TestVMsSleepOneAfterTheOther(t *testing.T) {
	w := newWorld(t)
	for range 4 {
		mustCreate(t, w, vm.CreateRequest{})
	}
	prepared := 0
	w.calls.Before("Prepare", func() {
		all, err := w.store.AllVMs(t.Context())
		if prepared++; err != nil || slices.ContainsFunc(all, vm.VM.Volatile) {
			t.Errorf("the room is compared while memory is being saved: %v", err)
		}
		if prepared == 3 {
			w.calls.Fail("Prepare", 1, errs.New(errs.Exhausted, "disk_full", "the disk is full"))
		}
	})
	w.takeDown(t)
	all, err := w.store.AllVMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stopped := 0
	for _, v := range all {
		if v.State == vm.Stopped {
			stopped++
			requireDown(t, v, vm.Stopped, vm.AutostartRunning, "the disk is full")
		} else {
			requireDown(t, v, vm.Snapshotted, vm.AutostartRunning, "")
		}
	}
	if stopped != 1 {
		t.Errorf("%d VMs are stopped", stopped)
	}
}

// Each stop may take long, so they begin at the same time.
func TestAllGuestsAreAskedAtOnce(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"stop":  func(w *world) { w.hostPower.Policy = hostpower.Stop },
		"sleep": func(w *world) { w.driver.Capabilities.Save = false },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.shut(t)
			prepare(w)
			w.hostPower.Timeout = 2 * time.Second
			w.serve(t)
			const count = 12
			for range count {
				mustCreate(t, w, vm.CreateRequest{})
			}
			var asked atomic.Int32 // PowerButton returns once all guests are asked
			all := make(chan struct{})
			w.calls.Before("PowerButton", func() {
				if asked.Add(1) == count {
					close(all)
				}
				select {
				case <-all:
				case <-t.Context().Done():
				}
			})
			w.takeDown(t)
			vms, err := w.store.AllVMs(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range vms {
				requireDown(t, v, vm.Stopped, vm.AutostartRunning, "stopped for the shutdown of the host")
			}
		})
	}
}

// A VM whose turn does not come in time is stopped instead of killed.
func TestThereIsTimeToStopWhatCannotSleepInTime(t *testing.T) {
	w := newWorld(t)
	w.shut(t)
	w.hostPower.Timeout = time.Second // 0.2 of it are for stops
	w.holdPersist = make(chan struct{})
	defer close(w.holdPersist)
	w.serve(t)
	for range 2 {
		mustCreate(t, w, vm.CreateRequest{})
	}
	w.takeDown(t)
	all, err := w.store.AllVMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stopped := slices.IndexFunc(all, func(v vm.VM) bool { return v.State == vm.Stopped })
	if stopped < 0 || !all[1-stopped].Volatile() {
		t.Fatalf("they are %+v", all)
	}
	requireDown(t, all[stopped], vm.Stopped, vm.AutostartRunning, "other VMs took the time that there was for it")
}

// A database that is away for a moment costs no VM its memory.
func TestADatabaseThatComesBackDuringTheShutdown(t *testing.T) {
	for _, call := range []string{"AllVMs", "UpdateVM", "VM"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.calls.Fail(call, 1, errs.New(errs.Unavailable, errs.DatabaseUnavailable, "injected: the database does not answer"))
			w.takeDown(t)
			requireDown(t, get(t, w, v.ID), vm.Snapshotted, vm.AutostartRunning, "for the shutdown of the host")
		})
	}
}

// A VM that hatchd could not stop is not said to have had all the time.
func TestTheReasonOfAKillIsTrue(t *testing.T) {
	w := newWorld(t)
	w.configure(t, func() { w.hostPower.Policy = hostpower.Stop })
	v := mustCreate(t, w, vm.CreateRequest{})
	w.calls.Fail("UpdateVM", 3, errors.New("injected: no database"))
	w.takeDown(t)
	requireDown(t, get(t, w, v.ID), vm.Stopped, vm.AutostartRunning, "killed for the shutdown of the host: the VM could not be stopped: an internal error")
}

// hatchd is told nothing of a power cut, and does not run when it is stopped
// before the host.
func TestVMsCutOffByThePowerComeBack(t *testing.T) {
	w := newWorld(t)
	running, paused := mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
	stopped, failed := mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), access.Owner(owner), paused.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Stop(t.Context(), access.Owner(owner), stopped.ID); err != nil {
		t.Fatal(err)
	}
	w.driver.Panic(failed.ID)
	w.awaitState(t, failed.ID, vm.Failed)
	w.restartHostTwice(t)
	for id, want := range map[string]vm.State{running.ID: vm.Running, paused.ID: vm.Running, stopped.ID: vm.Stopped, failed.ID: vm.Failed} {
		if now := get(t, w, id); now.State != want || now.Autostart != vm.NoAutostart {
			t.Errorf("it is %s (%s), to come back %q; want %s", now.State, now.StateReason, now.Autostart, want)
		}
	}
	events, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, VMID: running.ID, Limit: 100})
	if err != nil || !strings.Contains(events[3].Message, "stopped: the host was restarted") {
		t.Errorf("the event says %q, %v", events[3].Message, err)
	}
}

// A VM whose VMM ended while the host went on does not come back.
func TestVMsThatEndedOnTheirOwnStayDown(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	w.driver.Crash(v.ID)
	w.serve(t)
	requireDown(t, get(t, w, v.ID), vm.Stopped, vm.NoAutostart, "the cause is unknown")
}

func TestWithoutAutostartVMsStayDown(t *testing.T) {
	w := newWorld(t)
	w.configure(t, func() { w.hostPower.Autostart = false })
	slept, cut := mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
	w.takeDown(t)
	if _, err := w.Stop(t.Context(), access.Owner(owner), cut.ID); err != nil {
		t.Fatal(err)
	}
	w.restartHost(t)
	if _, err := w.Start(t.Context(), access.Owner(owner), cut.ID); err != nil {
		t.Fatal(err)
	}
	w.restartHost(t)
	requireDown(t, get(t, w, cut.ID), vm.Stopped, vm.NoAutostart, "the host was restarted")
	w.hostPower.Autostart = true // not for those that went down before
	w.restartHostTwice(t)
	requireDown(t, get(t, w, slept.ID), vm.Snapshotted, vm.NoAutostart, "for the shutdown of the host")
	requireDown(t, get(t, w, cut.ID), vm.Stopped, vm.NoAutostart, "the host was restarted")
}

// A request after a VM has gone down with the host is the owner's last word.
func TestRequestsDecideWhatComesBack(t *testing.T) {
	w := newWorld(t)
	v, deleted := mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
	w.takeDown(t)
	if slept, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil || slept.Autostart != vm.NoAutostart {
		t.Errorf("after a sleep: %+v, %v", slept, err)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), deleted.ID); err != nil {
		t.Error(err)
	}
	w.restartHostTwice(t)
	requireDown(t, get(t, w, v.ID), vm.Snapshotted, vm.NoAutostart, "")
	w.configure(t, func() { w.hostPower.Policy = hostpower.Stop })
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.takeDown(t)
	requireDown(t, get(t, w, v.ID), vm.Stopped, vm.AutostartRunning, "")
	if stopped, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil || stopped.Autostart != vm.NoAutostart {
		t.Errorf("after a stop: %+v, %v", stopped, err)
	}
	w.restartHostTwice(t)
	requireDown(t, get(t, w, v.ID), vm.Stopped, vm.NoAutostart, "")
}

func TestNothingStartsWhileTheHostShutsDown(t *testing.T) {
	w := newWorld(t)
	slept, stopped, runs := asleep(t, w), mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Stop(t.Context(), access.Owner(owner), stopped.ID); err != nil {
		t.Fatal(err)
	}
	w.RefuseStarts()
	for name, start := range map[string]func() error{
		"create":         func() error { _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); return err },
		"start":          func() error { _, err := w.Start(t.Context(), access.Owner(owner), stopped.ID); return err },
		"wake":           func() error { _, err := w.Wake(t.Context(), access.Owner(owner), slept.ID); return err },
		"wake on demand": func() error { return w.WakeOnDemand(t.Context(), slept.ID) },
		"fork":           func() error { _, err := w.Fork(t.Context(), owner, runs.ID, vm.CloneRequest{Count: 1}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			if err := start(); !errs.HasCode(err, "host_shutting_down") || !errs.Is(err, errs.Unavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
	if get(t, w, slept.ID).State != vm.Snapshotted || get(t, w, stopped.ID).State != vm.Stopped || get(t, w, runs.ID).State != vm.Running {
		t.Error("a VM has changed its state")
	}
	if all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(all) != 3 {
		t.Errorf("%d VMs, %v", len(all), err)
	}
	if _, err := w.Stop(t.Context(), access.Owner(owner), runs.ID); err != nil {
		t.Errorf("a stop: %v", err)
	}
}

// A VM that cannot come back stays down, with the reason, and is not tried again.
func TestVMsThatCannotComeBack(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(w *world)
		says    string
	}{
		"no memory": {func(w *world) { w.memMiB = 100 }, "cannot wake the VM after the restart of the host: "},
		"no start":  {func(w *world) { w.calls.FailNext("Recall") }, "cannot wake the VM after the restart of the host: "},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.takeDown(t)
			c.prepare(w)
			w.restartHostTwice(t)
			requireDown(t, get(t, w, v.ID), vm.Snapshotted, vm.NoAutostart, c.says)
			w.memMiB = 16 << 10
			if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Errorf("a wake on request: %v", err)
			}
		})
	}
}

// The host goes down again, in order or by a power cut, before VMs are back.
func TestAComebackCutShortIsRepeated(t *testing.T) {
	w := newWorld(t)
	w.configure(t, func() { w.hostPower.Policy = hostpower.Stop })
	v := mustCreate(t, w, vm.CreateRequest{})
	w.takeDown(t)
	w.shut(t)
	w.loseRAM(t)
	w.open(t)
	w.RefuseStarts()
	if err := w.Recover(t.Context(), "/"); err != nil {
		t.Fatal(err)
	}
	w.shut(t)
	requireDown(t, get(t, w, v.ID), vm.Stopped, vm.AutostartRunning, "for the shutdown of the host")
	w.change(t, v.ID, vm.ToStarting)
	w.loseRAM(t)
	w.serve(t)
	w.awaitState(t, v.ID, vm.Running)
	events, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, VMID: v.ID, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var messages []string
	for _, e := range events {
		messages = append(messages, e.Message)
	}
	if !slices.Contains(messages, "stopped: hatchd ended before the VM was back after the restart of the host") {
		t.Errorf("the events say %q", messages)
	}
}

// The host begins to shut down between the two halves of a restart.
func TestARestartCutShortByTheHostIsFinished(t *testing.T) {
	w := newWorld(t)
	v, stopped := mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Stop(t.Context(), access.Owner(owner), stopped.ID); err != nil {
		t.Fatal(err)
	}
	w.RefuseStarts() // a stop is still possible
	for _, id := range []string{v.ID, stopped.ID} {
		if _, err := w.Restart(t.Context(), access.Owner(owner), id); !errs.HasCode(err, "host_shutting_down") {
			t.Errorf("the restart: %v", err)
		}
	}
	w.takeDown(t)
	requireDown(t, get(t, w, v.ID), vm.Stopped, vm.AutostartRunning, "a restart, which the end of hatchd or the shutdown of the host cut short")
	w.restartHostTwice(t)
	w.awaitState(t, v.ID, vm.Running)
	requireDown(t, get(t, w, stopped.ID), vm.Stopped, vm.NoAutostart, "")
}
