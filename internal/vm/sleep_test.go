package vm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// asleep makes a VM and puts it to sleep.
func asleep(t *testing.T, w *world) vm.VM {
	t.Helper()
	v := mustCreate(t, w, vm.CreateRequest{})
	slept, err := w.Sleep(t.Context(), owner, v.ID)
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
	v, err := w.Get(t.Context(), owner, id)
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
	if v.State != vm.Snapshotted || v.Sleep == nil || v.Machine != nil || v.Intent != vm.WantAsleep {
		t.Errorf("it is %s (%s), sleep %+v, machine %+v, intent %s", v.State, v.StateReason, v.Sleep, v.Machine, v.Intent)
	}
	if v.Lease.Address != before.Lease.Address || v.Lease.SSHPort != before.Lease.SSHPort || v.Lease.MAC.String() != before.Lease.MAC.String() {
		t.Errorf("its lease is %+v, and was %+v", v.Lease, before.Lease)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.links) > 0 || len(w.consoles) > 0 || len(w.guests) > 0 {
		t.Errorf("left behind: links %v, consoles %v, guests %v", w.links, w.consoles, w.guests)
	}
	if w.forwards[v.Lease.SSHPort] != v.ID {
		t.Errorf("its SSH port is not open: %v", w.forwards)
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
	if v.State != vm.Running || v.Sleep != nil || v.Machine == nil || v.Intent != vm.WantRunning {
		t.Errorf("it is %s (%s), sleep %+v, machine %+v, intent %s", v.State, v.StateReason, v.Sleep, v.Machine, v.Intent)
	}
	if v.Lease.Address != before.Lease.Address || v.Lease.SSHPort != before.Lease.SSHPort {
		t.Errorf("its lease is %+v, and was %+v", v.Lease, before.Lease)
	}
	w.mu.Lock()
	_, linked := w.links[v.ID]
	forwarded := w.forwards[v.Lease.SSHPort] == v.ID
	console, guest := w.consoles[v.ID], w.guests[v.ID] != nil
	w.mu.Unlock()
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

func TestSleepAndWakeKeepWhatIsReserved(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	for i := range 4 {
		if _, err := w.Sleep(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		if again, err := w.Sleep(t.Context(), owner, v.ID); err != nil || again.State != vm.Snapshotted {
			t.Fatalf("sleep of a sleeping VM: %+v, %v", again, err)
		}
		if i%2 == 0 {
			awaitDurable(t, w, v.ID)
		}
		requireAsleep(t, w, v)
		woken, err := w.Wake(t.Context(), owner, v.ID)
		if err != nil || woken.State != vm.Running {
			t.Fatalf("got %+v, %v", woken, err)
		}
		requireAwake(t, w, v)
		w.mu.Lock()
		slept := w.guests[v.ID].slept
		w.mu.Unlock()
		if !slept {
			t.Error("the guest was not told that it slept")
		}
		if again, err := w.Wake(t.Context(), owner, v.ID); err != nil || again.State != vm.Running {
			t.Fatalf("wake of a running VM: %+v, %v", again, err)
		}
	}
	if err := w.Delete(t.Context(), owner, v.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
}

func TestManyWakesAreOne(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			err := w.Rouse(context.Background(), v.ID)
			if i%2 == 0 {
				_, err = w.Wake(context.Background(), owner, v.ID)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if w.wakes != 1 {
		t.Errorf("the driver woke it %d times", w.wakes)
	}
	requireAwake(t, w, v)
	if err := w.Rouse(t.Context(), v.ID); err != nil || w.wakes != 1 {
		t.Errorf("rousing one that runs: %v, %d wakes", err, w.wakes)
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
	if _, err := w.Wake(t.Context(), owner, v.ID); err != nil {
		t.Fatal(err)
	}
	requireAwake(t, w, v)
}

func TestASleepThatFailsLetsTheGuestGoOn(t *testing.T) {
	for _, call := range []string{"Prepare", "Save", "Disks", "UpdateVM"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.failNext(call)
			if _, err := w.Sleep(t.Context(), owner, v.ID); err == nil {
				t.Fatal("the sleep did not fail")
			}
			requireAwake(t, w, v)
			if _, err := w.Sleep(t.Context(), owner, v.ID); err != nil {
				t.Errorf("it cannot sleep any more: %v", err)
			}
		})
	}
}

func TestAWakeThatFailsLetsTheVMSleep(t *testing.T) {
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
				w.failNext(call)
				if _, err := w.Wake(t.Context(), owner, v.ID); err == nil {
					t.Fatal("the wake did not fail")
				}
				now := requireAsleep(t, w, v)
				if now.Sleep != nil && now.Sleep.Durable != durable {
					t.Errorf("its memory is durable: %v", now.Sleep.Durable)
				}
				if held, err := w.memories.Held(); err != nil || (len(held) == 0) != durable {
					t.Errorf("memory in RAM: %v, %v", held, err)
				}
				if _, err := w.Wake(t.Context(), owner, v.ID); err != nil {
					t.Fatalf("it cannot be woken any more: %v", err)
				}
				requireAwake(t, w, v)
			})
		}
	}
}

// Once it is stored that the VM runs, what was saved is not used again.
func TestAGuestThatDoesNotGoOnIsAnError(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	w.failNext("Resume")
	if _, err := w.Wake(t.Context(), owner, v.ID); err == nil {
		t.Fatal("the wake did not fail")
	}
	if now := get(t, w, v.ID); now.State != vm.Failed || now.Sleep != nil {
		t.Errorf("it is %s, sleep %+v", now.State, now.Sleep)
	}
	if again, err := w.Start(t.Context(), owner, v.ID); err != nil || again.State != vm.Running {
		t.Errorf("got %+v, %v", again, err)
	}
	if err := w.Delete(t.Context(), owner, v.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
}

func TestDamagedMemoryIsRefusedAndAColdStartRemains(t *testing.T) {
	w := newWorld(t)
	v := asleep(t, w)
	awaitDurable(t, w, v.ID)
	path := filepath.Join(w.memories.Dir(v.ID), vmm.SavedDevices)
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := w.Wake(t.Context(), owner, v.ID)
	if !errs.HasCode(err, "saved_unusable") {
		t.Fatalf("got %v", err)
	}
	now := requireAsleep(t, w, v)
	if !strings.Contains(now.StateReason, "devices") {
		t.Errorf("the reason is %q", now.StateReason)
	}
	started, err := w.Start(t.Context(), owner, v.ID)
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
		if _, err := w.Start(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		requireAwake(t, w, v)
		if err := w.Delete(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		v = sleep()
		stopped, err := w.Stop(t.Context(), owner, v.ID)
		if err != nil || stopped.State != vm.Stopped || stopped.Sleep != nil || !strings.Contains(stopped.StateReason, "lost") {
			t.Fatalf("got %+v, %v", stopped, err)
		}
		if held, err := w.memories.Held(); err != nil || len(held) > 0 {
			t.Errorf("memory in RAM: %v, %v", held, err)
		}
		if _, err := os.Stat(w.memories.Dir(v.ID)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was saved is still there: %v", err)
		}
		if _, err := w.Wake(t.Context(), owner, v.ID); !errs.HasCode(err, "vm_not_asleep") {
			t.Errorf("wake of a stopped VM: %v", err)
		}
		if _, err := w.Sleep(t.Context(), owner, v.ID); !errs.HasCode(err, "vm_not_running") {
			t.Errorf("sleep of a stopped VM: %v", err)
		}
		if err := w.Delete(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		v = sleep()
		if err := w.Delete(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		w.requireNothing(t)
	}
}

func TestAPausedVMIsNotPutToSleep(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), owner, v.ID); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context, string, string) (vm.VM, error){"sleep": w.Sleep, "wake": w.Wake} {
		if _, err := call(t.Context(), owner, v.ID); !errs.HasCode(err, "vm_paused") {
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
		if _, err := w.Wake(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		requireAwake(t, w, v)
	}
}

// A host that is restarted loses what is in RAM.
func TestMemoryThatWasOnlyInRAMIsGoneWithTheHost(t *testing.T) {
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
	if _, err := w.Start(t.Context(), owner, v.ID); err != nil {
		t.Error(err)
	}
}

// The daemon is killed between the steps of a sleep: what is stored decides.
func TestASleepCutShort(t *testing.T) {
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
		v.State, v.Intent, v.Machine, v.Sleep = vm.Snapshotted, vm.WantAsleep, nil, &vm.Sleep{At: time.Now()}
	})
	w.serve(t) // after it was: it sleeps, and its machine is ended
	requireAsleep(t, w, v)
	if _, err := w.Wake(t.Context(), owner, v.ID); err != nil {
		t.Fatal(err)
	}
	requireAwake(t, w, v)
}

// The daemon is killed between the steps of a wake.
func TestAWakeCutShort(t *testing.T) {
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
		v.State, v.Machine, v.Sleep, v.Intent = vm.Running, &h, nil, vm.WantRunning
		v.Conditions.Agent = vm.Condition{Status: vm.Unknown, Reason: "Waking"}
	})
	w.serve(t) // after it was: its guest goes on
	requireAwake(t, w, v)
	if !w.guests[v.ID].slept {
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

func TestRAMThatNoVMUsesIsGivenBackAtStart(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Stop(t.Context(), owner, v.ID); err != nil {
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
	v := mustCreate(t, w, vm.CreateRequest{MemMiB: &most})
	if _, err := w.Sleep(t.Context(), owner, v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("its memory is still in RAM: %v", err)
	}
	close(w.holdPersist)
	awaitDurable(t, w, v.ID)
	other := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Wake(t.Context(), owner, v.ID); !errs.Is(err, errs.Exhausted) {
		t.Errorf("a wake without room: %v", err)
	}
	if now := get(t, w, v.ID); now.State != vm.Snapshotted || now.Sleep == nil {
		t.Errorf("it is %s, sleep %+v", now.State, now.Sleep)
	}
	if err := w.Delete(t.Context(), owner, other.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Wake(t.Context(), owner, v.ID); err != nil {
		t.Error(err)
	}
}

// TestKnockingAtAVMThatCannotWake has strangers connect to its SSH port: each
// would have it tried, and told of, once more.
func TestKnockingAtAVMThatCannotWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock goes on when all are idle
		w := newWorld(t)
		v := asleep(t, w)
		told := len(w.story(t, v.ID))
		for range 20 {
			w.failNext("Wake")
			if err := w.Rouse(t.Context(), v.ID); err == nil {
				t.Fatal("it woke")
			}
		}
		if more := len(w.story(t, v.ID)) - told; w.wakes != 1 || more > 3 {
			t.Errorf("tried %d times, and %d events tell of it", w.wakes, more)
		}
		<-time.After(time.Minute)
		if err := w.Rouse(t.Context(), v.ID); err == nil || w.wakes != 2 {
			t.Errorf("later: %v, tried %d times", err, w.wakes)
		}
		if _, err := w.Wake(t.Context(), owner, v.ID); err != nil { // its owner need not wait
			t.Error(err)
		}
		if _, err := w.Sleep(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		if err := w.Rouse(t.Context(), v.ID); err != nil { // it woke since
			t.Error(err)
		}
	})
}
