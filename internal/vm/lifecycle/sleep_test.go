package lifecycle_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// asleep makes a VM and puts it to sleep.
func asleep(t *testing.T, w *world) vm.VM {
	t.Helper()
	v := mustCreate(t, w, vm.CreateRequest{})
	slept, err := w.Sleep(t.Context(), access.Owner(owner), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	return slept
}

// awaitDurable waits until the memory of a sleeping VM is on disk, and its RAM
// given back.
func awaitDurable(t *testing.T, w *world, id string) vm.VM {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-tick.C {
		v := get(t, w, id)
		held, err := w.memories.Held()
		if err != nil {
			t.Fatal(err)
		}
		if v.Sleep != nil && v.Sleep.Durable && len(held) == 0 {
			return v
		}
	}
	t.Fatal("its memory does not become durable")
	return vm.VM{}
}

func get(t *testing.T, w *world, id string) vm.VM {
	t.Helper()
	v, err := w.Get(t.Context(), access.Owner(owner), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// requireAsleep checks what is left of a VM that sleeps: its port, its lease
// and its memory, and no more.
func requireAsleep(t *testing.T, w *world, before vm.VM) vm.VM {
	t.Helper()
	v := get(t, w, before.ID)
	if v.State != vm.Snapshotted || v.Sleep == nil || v.Machine != nil || v.Intent != vm.IntentAsleep {
		t.Errorf("it is %s (%s), sleep %+v, machine %+v, intent %s", v.State, v.StateReason, v.Sleep, v.Machine, v.Intent)
	}
	if v.Lease.Address != before.Lease.Address || v.Lease.SSHPort != before.Lease.SSHPort || v.Lease.MAC.String() != before.Lease.MAC.String() {
		t.Errorf("its lease is %+v, and was %+v", v.Lease, before.Lease)
	}
	if links, consoles, guests := w.network.Links(), w.consoles.VMs(), w.guests.Sessions(); len(links)+len(consoles)+len(guests) > 0 {
		t.Errorf("left behind: links %v, consoles %v, guests %v", links, consoles, guests)
	}
	if forwards := w.forwards.VMs(); forwards[v.Lease.SSHPort] != v.ID {
		t.Errorf("its SSH port is not open: %v", forwards)
	}
	if machines, err := w.driver.List(context.Background(), "/"); err != nil || len(machines) > 0 {
		t.Errorf("left behind: machines %v, %v", machines, err)
	}
	return v
}

// requireAwake checks that a VM runs, and that nothing saved of it is left.
func requireAwake(t *testing.T, w *world, before vm.VM) {
	t.Helper()
	v := get(t, w, before.ID)
	if v.State != vm.Running || v.Sleep != nil || v.Machine == nil || v.Intent != vm.IntentRunning {
		t.Errorf("it is %s (%s), sleep %+v, machine %+v, intent %s", v.State, v.StateReason, v.Sleep, v.Machine, v.Intent)
	}
	if v.Lease.Address != before.Lease.Address || v.Lease.SSHPort != before.Lease.SSHPort {
		t.Errorf("its lease is %+v, and was %+v", v.Lease, before.Lease)
	}
	_, linked := w.network.Links()[v.ID]
	forwarded := w.forwards.VMs()[v.Lease.SSHPort] == v.ID
	console, guest := slices.Contains(w.consoles.VMs(), v.ID), w.guests.Session(v.ID) != nil
	if !linked || !forwarded || !console || !guest {
		t.Errorf("linked %v, forwarded %v, console %v, guest %v", linked, forwarded, console, guest)
	}
	if _, err := os.Stat(w.memories.Dir(v.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was saved is still there: %v", err)
	}
	if held, err := w.memories.Held(); err != nil || len(held) != 1 {
		t.Errorf("memory in RAM: %v, %v", held, err)
	}
	machines, err := w.driver.List(context.Background(), "/")
	if err != nil || len(machines) != 1 {
		t.Fatalf("machines %v, %v", machines, err)
	}
	m, err := w.driver.Again().Adopt(t.Context(), machines[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if paused, err := m.Paused(t.Context()); err != nil || paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
}

func TestSleepAndWakeKeepReservations(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	for i := range 4 {
		if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		if again, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil || again.State != vm.Snapshotted {
			t.Fatalf("sleep of a sleeping VM: %+v, %v", again, err)
		}
		if i%2 == 0 {
			awaitDurable(t, w, v.ID)
		}
		requireAsleep(t, w, v)
		woken, err := w.Wake(t.Context(), access.Owner(owner), v.ID)
		if err != nil || woken.State != vm.Running {
			t.Fatalf("got %+v, %v", woken, err)
		}
		requireAwake(t, w, v)
		if !w.guests.Session(v.ID).Woken {
			t.Error("the guest was not told that it slept")
		}
		if again, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil || again.State != vm.Running {
			t.Fatalf("wake of a running VM: %+v, %v", again, err)
		}
	}
	if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
}

func TestConcurrentWakesAreOne(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			err := w.WakeOnDemand(context.Background(), v.ID)
			if i%2 == 0 {
				_, err = w.Wake(context.Background(), access.Owner(owner), v.ID)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if w.calls.Count("Wake") != 1 {
		t.Errorf("the driver woke it %d times", w.calls.Count("Wake"))
	}
	requireAwake(t, w, v)
	if err := w.WakeOnDemand(t.Context(), v.ID); err != nil || w.calls.Count("Wake") != 1 {
		t.Errorf("wake on demand of a running VM: %v, %d wakes", err, w.calls.Count("Wake"))
	}
}

// A wake that comes before the memory is on disk uses what is in RAM.
func TestAWakeDoesNotWaitForTheDisk(t *testing.T) {
	w := newWorld(t)
	w.holdPersist = make(chan struct{})
	v := asleep(t, w)
	if v.Sleep == nil || v.Sleep.Durable {
		t.Fatalf("sleep %+v", v.Sleep)
	}
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	requireAwake(t, w, v)
}

func TestFailedSleepResumesTheGuest(t *testing.T) {
	for _, call := range []string{"Prepare", "Save", "Disks", "UpdateVM"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.calls.FailNext(call)
			if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err == nil {
				t.Fatal("the sleep did not fail")
			}
			requireAwake(t, w, v)
			if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Errorf("it cannot sleep any more: %v", err)
			}
		})
	}
}

func TestFailedWakeLeavesTheVMAsleep(t *testing.T) {
	for _, durable := range []bool{true, false} {
		for _, call := range []string{"LeaseVM", "Recall", "Attach", "Open", "Initramfs", "Disks", "Wake", "Console", "UpdateVM"} {
			t.Run(call, func(t *testing.T) {
				w := newWorld(t)
				if !durable {
					w.holdPersist = make(chan struct{})
				}
				v := asleep(t, w)
				if durable {
					awaitDurable(t, w, v.ID)
				}
				w.calls.FailNext(call)
				if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err == nil {
					t.Fatal("the wake did not fail")
				}
				now := requireAsleep(t, w, v)
				if now.Sleep != nil && now.Sleep.Durable != durable {
					t.Errorf("its memory is durable: %v", now.Sleep.Durable)
				}
				if held, err := w.memories.Held(); err != nil || (len(held) == 0) != durable {
					t.Errorf("memory in RAM: %v, %v", held, err)
				}
				if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
					t.Fatalf("it cannot be woken any more: %v", err)
				}
				requireAwake(t, w, v)
			})
		}
	}
}

// Once it is stored that the VM runs, what was saved is not used again.
func TestGuestThatDoesNotResumeIsAnError(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	w.calls.FailNext("Resume")
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err == nil {
		t.Fatal("the wake did not fail")
	}
	if now := get(t, w, v.ID); now.State != vm.Failed || now.Sleep != nil {
		t.Errorf("it is %s, sleep %+v", now.State, now.Sleep)
	}
	if again, err := w.Start(t.Context(), access.Owner(owner), v.ID); err != nil || again.State != vm.Running {
		t.Errorf("got %+v, %v", again, err)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
}

// requireVersions checks an error about another version of the VMM.
func requireVersions(t *testing.T, err error, code, needs, installed string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Conflict || e.Code != code || !strings.Contains(e.Message, needs) || !strings.Contains(e.Message, installed) || e.Hint == "" {
		t.Errorf("got %v, want %s with %q and %q", err, code, needs, installed)
	}
}

// A wake on another version of the VMM is refused before anything is done for it, and
// possible again once the old one is back.
func TestSavedMemoryOfAnotherVersionIsNotTouched(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	awaitDurable(t, w, v.ID)
	before := get(t, w, v.ID)
	w.driver.Version = "2.0"
	w.calls.FailNext("Recall")
	_, err := w.Wake(t.Context(), access.Owner(owner), v.ID)
	requireVersions(t, err, "saved_unusable", "it needs version 1.0 of fake", "2.0 is installed")
	if !w.calls.Withdraw("Recall") {
		t.Error("its memory was read")
	}
	if now := requireAsleep(t, w, v); now.Revision != before.Revision {
		t.Errorf("its row has changed: %+v, before %+v", now, before)
	}
	_, err = w.Fork(t.Context(), owner, v.ID, vm.CloneRequest{Count: 1})
	requireVersions(t, err, "saved_unusable", "it needs version 1.0 of fake", "2.0 is installed")
	w.driver.Version = "1.0"
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Error(err)
	}
}

// A VM that runs on another version of the VMM than is installed is not saved for a
// wake or a fork that would be refused. A snapshot of it names its version.
func TestAVMOfAnotherVersionIsNotPutToSleep(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.Version = "2.0"
	w.calls.FailNext("Save")
	_, err := w.Sleep(t.Context(), access.Owner(owner), v.ID)
	requireVersions(t, err, "vmm_replaced", "cannot put to sleep VM "+v.ID+": it runs on version 1.0 of fake", "2.0 is installed")
	_, err = w.Fork(t.Context(), owner, v.ID, vm.CloneRequest{Count: 1})
	requireVersions(t, err, "vmm_replaced", "cannot fork VM "+v.ID+": it runs on version 1.0 of fake", "2.0 is installed")
	_, err = w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{Stop: true})
	requireVersions(t, err, "vmm_replaced", "1.0", "2.0")
	w.shut(t)
	w.serve(t) // which adopts it
	_, err = w.Sleep(t.Context(), access.Owner(owner), v.ID)
	requireVersions(t, err, "vmm_replaced", "1.0", "2.0")
	if !w.calls.Withdraw("Save") {
		t.Error("it was saved")
	}
	if all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(all) != 1 || all[0].State != vm.Running {
		t.Errorf("there are %+v, %v", all, err)
	}
	snap := w.take(t, v.ID, "old", vm.SnapshotRequest{})
	requireVersions(t, w.Fits(snap), "snapshot_unusable", "it needs version 1.0 of fake", "2.0 is installed")
	if _, err := w.Restart(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestDamagedMemoryIsRefusedAndAColdStartRemains(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	awaitDurable(t, w, v.ID)
	path := filepath.Join(w.memories.Dir(v.ID), vmm.SavedDevices)
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := w.Wake(t.Context(), access.Owner(owner), v.ID)
	if !errs.HasCode(err, "saved_unusable") {
		t.Fatalf("got %v", err)
	}
	now := requireAsleep(t, w, v)
	if !strings.Contains(now.StateReason, "devices") {
		t.Errorf("the reason is %q", now.StateReason)
	}
	started, err := w.Start(t.Context(), access.Owner(owner), v.ID)
	if err != nil || started.State != vm.Running {
		t.Fatalf("got %+v, %v", started, err)
	}
	requireAwake(t, w, v)
}

func TestASleepingVMCanBeStartedStoppedAndDeleted(t *testing.T) {
	for _, durable := range []bool{true, false} {
		w := newWorld(t)
		if !durable {
			w.holdPersist = make(chan struct{})
		}
		sleep := func() vm.VM {
			t.Helper()
			v := asleep(t, w)
			if durable {
				return awaitDurable(t, w, v.ID)
			}
			return v
		}
		v := sleep()
		if _, err := w.Start(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		requireAwake(t, w, v)
		if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		v = sleep()
		stopped, err := w.Stop(t.Context(), access.Owner(owner), v.ID)
		if err != nil || stopped.State != vm.Stopped || stopped.Sleep != nil || !strings.Contains(stopped.StateReason, "lost") {
			t.Fatalf("got %+v, %v", stopped, err)
		}
		if held, err := w.memories.Held(); err != nil || len(held) > 0 {
			t.Errorf("memory in RAM: %v, %v", held, err)
		}
		if _, err := os.Stat(w.memories.Dir(v.ID)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was saved is still there: %v", err)
		}
		if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "vm_not_asleep") {
			t.Errorf("wake of a stopped VM: %v", err)
		}
		if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "vm_not_running") {
			t.Errorf("sleep of a stopped VM: %v", err)
		}
		if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		v = sleep()
		if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		w.requireNothing(t)
	}
}

func TestAPausedVMIsNotPutToSleep(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context, access.Scope, string) (vm.VM, error){"sleep": w.Sleep, "wake": w.Wake} {
		if _, err := call(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "vm_paused") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSleepingVMsOutliveTheDaemon(t *testing.T) {
	for _, durable := range []bool{true, false} {
		w := newWorld(t)
		if !durable {
			w.holdPersist = make(chan struct{})
		}
		v := asleep(t, w)
		if durable {
			awaitDurable(t, w, v.ID)
		}
		w.shut(t)
		w.holdPersist = nil
		w.serve(t)
		requireAsleep(t, w, v)
		awaitDurable(t, w, v.ID) // the next daemon goes on where the first ended
		if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		requireAwake(t, w, v)
	}
}

func TestADurableSleepIsAwaited(t *testing.T) {
	w := newWorld(t)
	w.holdPersist = make(chan struct{})
	v := asleep(t, w)
	awaitUntil := func(ctx context.Context) (vm.VM, error) { return w.AwaitDurable(ctx, access.Owner(owner), v.ID) }
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := awaitUntil(short); !errs.HasCode(err, "wait_timeout") {
		t.Errorf("before the memory is on disk: %v", err)
	}
	close(w.holdPersist)
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if got, err := awaitUntil(ctx); err != nil || !got.Sleep.Durable {
		t.Errorf("got %+v, %v", got.Sleep, err)
	}
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := awaitUntil(ctx); !errs.HasCode(err, "vm_not_asleep") {
		t.Errorf("of a VM that runs: %v", err)
	}
}

// A disk that cannot be written keeps the memory in RAM, which was not on disk either.
func TestTheDiskIsDurableBeforeTheMemory(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.calls.FailNext("Sync")
	if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := w.AwaitDurable(ctx, access.Owner(owner), v.ID); !errs.HasCode(err, "wait_timeout") {
		t.Errorf("it is durable without its disk: %v", err)
	}
	if w.calls.Pending("Sync") || !w.memories.Has(v.ID, false) {
		t.Error("its disk was not written, or its memory is gone")
	}
}

// A host that is restarted loses what is in RAM.
func TestMemoryOnlyInRAMIsLostWithTheHost(t *testing.T) {
	w := newWorld(t)
	w.holdPersist = make(chan struct{})
	v := asleep(t, w)
	w.shut(t)
	if err := w.memories.Release(v.ID); err != nil {
		t.Fatal(err)
	}
	w.serve(t)
	now := get(t, w, v.ID)
	if now.State != vm.Stopped || now.Sleep != nil || !strings.Contains(now.StateReason, "host was restarted") {
		t.Errorf("it is %s (%s), sleep %+v", now.State, now.StateReason, now.Sleep)
	}
	if _, err := w.Start(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Error(err)
	}
}

// The daemon is killed between the steps of a sleep: what is stored decides.
func TestInterruptedSleep(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	m, spec := w.machine(t, v)
	w.shut(t)
	if err := w.memories.Prepare(v.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(t.Context(), spec, w.memories.Dir(v.ID)); err != nil {
		t.Fatal(err)
	}
	w.serve(t) // before the row was written: it runs
	requireAwake(t, w, v)
	w.shut(t)

	if err := w.memories.Prepare(v.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(t.Context(), spec, w.memories.Dir(v.ID)); err != nil {
		t.Fatal(err)
	}
	w.change(t, v.ID, func(v *vm.VM) {
		v.State, v.Intent, v.Machine, v.Sleep = vm.Snapshotted, vm.IntentAsleep, nil, &vm.Sleep{At: time.Now()}
	})
	w.serve(t) // after it was: it sleeps, and its machine is ended
	requireAsleep(t, w, v)
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	requireAwake(t, w, v)
}

// The daemon is killed between the steps of a wake.
func TestInterruptedWake(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	awaitDurable(t, w, v.ID)
	w.shut(t)
	w.change(t, v.ID, func(v *vm.VM) { v.State = vm.Starting })
	w.serve(t) // before the machine was there: it sleeps
	requireAsleep(t, w, v)
	w.shut(t)

	if err := w.memories.Recall(t.Context(), v.ID, true, 0); err != nil {
		t.Fatal(err)
	}
	_, spec := w.machine(t, v)
	m, err := w.driver.Wake(t.Context(), spec, w.memories.Dir(v.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	w.change(t, v.ID, func(v *vm.VM) { v.State = vm.Starting })
	w.serve(t) // before the row was written: it sleeps on
	requireAsleep(t, w, v)
	w.shut(t)

	if err := w.memories.Recall(t.Context(), v.ID, true, 0); err != nil {
		t.Fatal(err)
	}
	again, err := w.driver.Wake(t.Context(), spec, w.memories.Dir(v.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	w.change(t, v.ID, func(v *vm.VM) {
		h := again.Handle()
		v.State, v.Machine, v.Sleep, v.Intent = vm.Running, &h, nil, vm.IntentRunning
		v.Conditions.Agent = vm.Condition{Status: vm.Unknown, Reason: "Waking"}
	})
	w.serve(t) // after it was: its guest goes on
	requireAwake(t, w, v)
	if !w.guests.Session(v.ID).Woken {
		t.Error("the guest was not told that it slept")
	}
}

// machine returns the machine of a VM as another daemon would see it, and its
// spec; after a sleep there is a spec only.
func (w *world) machine(t *testing.T, v vm.VM) (vmm.Machine, vmm.Spec) {
	t.Helper()
	spec := vmm.Spec{
		ID: v.ID, Dir: filepath.Join(w.root, v.ID), VCPUs: v.VCPUs, MemMiB: v.MemMiB, Memory: w.memories.Path(v.ID),
		Disks: []vmm.Disk{{Serial: "hatch-disk", Path: filepath.Join(w.root, v.ID, "disk.img")}},
		NIC:   &vmm.NIC{MAC: v.Lease.MAC}, Origin: map[string]string{"kernel": v.Boot.Kernel.Digest, "rootfs": v.Boot.Rootfs.Digest},
	}
	if v.Machine == nil {
		return nil, spec
	}
	m, err := w.driver.Again().Adopt(t.Context(), *v.Machine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m, spec
}

// change writes to the store what a daemon wrote before it was killed.
func (w *world) change(t *testing.T, id string, change func(*vm.VM)) {
	t.Helper()
	if _, err := w.store.UpdateVM(t.Context(), id, change); err != nil {
		t.Fatal(err)
	}
}

func TestUnusedRAMIsFreedAtStart(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.shut(t)
	for _, id := range []string{v.ID, "vm_unknown"} {
		if err := w.memories.Make(id, 64, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.serve(t)
	if held, err := w.memories.Held(); err != nil || len(held) > 0 {
		t.Errorf("memory in RAM: %v, %v", held, err)
	}
}

// Memory of VMs that sleep does not count, once it is on disk.
func TestCapacityOfSleepingVMs(t *testing.T) {
	w := newWorld(t)
	w.holdPersist = make(chan struct{})
	most := int(w.memMiB)
	v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: &most}})
	if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("its memory is still in RAM: %v", err)
	}
	close(w.holdPersist)
	awaitDurable(t, w, v.ID)
	other := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); !errs.Is(err, errs.Exhausted) {
		t.Errorf("a wake without room: %v", err)
	}
	if now := get(t, w, v.ID); now.State != vm.Snapshotted || now.Sleep == nil {
		t.Errorf("it is %s, sleep %+v", now.State, now.Sleep)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), other.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Error(err)
	}
}

// TestWakeOnDemandOfAVMThatCannotWake has strangers connect to its SSH port: each
// would have it tried, and told of, once more.
func TestWakeOnDemandOfAVMThatCannotWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock goes on when all are idle
		w := newWorld(t)
		v := asleep(t, w)
		told := len(w.story(t, v.ID))
		for range 20 {
			w.calls.FailNext("Wake")
			if err := w.WakeOnDemand(t.Context(), v.ID); err == nil {
				t.Fatal("it woke")
			}
		}
		if more := len(w.story(t, v.ID)) - told; w.calls.Count("Wake") != 1 || more > 3 {
			t.Errorf("tried %d times, and %d events tell of it", w.calls.Count("Wake"), more)
		}
		<-time.After(time.Minute)
		if err := w.WakeOnDemand(t.Context(), v.ID); err == nil || w.calls.Count("Wake") != 2 {
			t.Errorf("later: %v, tried %d times", err, w.calls.Count("Wake"))
		}
		if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil { // its owner need not wait
			t.Error(err)
		}
		if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		if err := w.WakeOnDemand(t.Context(), v.ID); err != nil { // it woke since
			t.Error(err)
		}
	})
}
