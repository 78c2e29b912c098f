package lifecycle_test

import (
	"errors"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

func (w *world) update(t *testing.T, id string, change func(*vm.VM)) (vm.VM, error) {
	t.Helper()
	return w.Update(t.Context(), access.Owner(owner), id, func(v *vm.VM) error { change(v); return nil })
}

func TestUpdateOfARunningVM(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{Name: "web"})
	got, err := w.update(t, v.ID, func(v *vm.VM) {
		v.Name, v.Description, v.Labels = "db", "for data", map[string]string{"tier": "db"}
	})
	if err != nil || got.Name != "db" || got.Description != "for data" || got.Labels["tier"] != "db" || got.State != vm.Running {
		t.Fatalf("%+v, %v", got, err)
	}
	if got.Hostname() != "web" {
		t.Errorf("the guest is called %s", got.Hostname())
	}
	if !got.UpdatedAt.After(v.UpdatedAt) {
		t.Error("it was not updated")
	}
	for name, change := range map[string]func(*vm.VM){
		"vcpu_count": func(v *vm.VM) { v.VCPUs++ },
		"mem_mib":    func(v *vm.VM) { v.MemMiB *= 2 },
	} {
		_, err := w.update(t, v.ID, change)
		e, _ := errs.As(err)
		if !errs.HasCode(err, "vm_not_stopped") || e.Field != name || e.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.update(t, v.ID, func(v *vm.VM) { v.Name = "No Name" }); !errs.HasCode(err, "invalid_name") {
		t.Errorf("a bad name: %v", err)
	}
	mustCreate(t, w, vm.CreateRequest{Name: "other"})
	if _, err := w.update(t, v.ID, func(v *vm.VM) { v.Name = "other" }); !errs.HasCode(err, "name_taken") {
		t.Errorf("another's name: %v", err)
	}
	failed := errors.New("no")
	if _, err := w.Update(t.Context(), access.Owner(owner), v.ID, func(v *vm.VM) error { v.Name = "lost"; return failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if now, err := w.Get(t.Context(), access.Owner(owner), v.ID); err != nil || now.Name != "db" || now.VCPUs != v.VCPUs || now.Revision == 0 {
		t.Errorf("%+v, %v", now, err)
	}
	if _, err := w.Update(t.Context(), access.Owner("acc_other"), v.ID, func(*vm.VM) error { return nil }); !errs.Is(err, errs.NotFound) {
		t.Errorf("another owner: %v", err)
	}
}

// A VM that this host could not create can still be renamed.
func TestIdlePolicyWithoutAnActionHasTheServers(t *testing.T) {
	w := newWorld(t)
	w.shut(t)
	w.policy = machine.IdlePolicy{Action: machine.ActionStop}
	w.serve(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	for given, want := range map[machine.Action]machine.Action{"": machine.ActionStop, machine.ActionSleep: machine.ActionSleep} {
		got, err := w.update(t, v.ID, func(v *vm.VM) { v.Idle = machine.IdlePolicy{Timeout: time.Minute, Action: given} })
		if err != nil || got.Idle.Action != want {
			t.Errorf("%q: %+v, %v", given, got.Idle, err)
		}
	}
	if got, err := w.update(t, v.ID, func(v *vm.VM) { v.Idle = machine.IdlePolicy{} }); err != nil || got.Idle != (machine.IdlePolicy{}) {
		t.Errorf("no policy: %+v, %v", got.Idle, err)
	}
}

func TestUpdateChecksWhatChanges(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.store.UpdateVM(t.Context(), v.ID, func(v *vm.VM) { v.VCPUs = 99 }); err != nil {
		t.Fatal(err)
	}
	if got, err := w.update(t, v.ID, func(v *vm.VM) { v.Name = "db" }); err != nil || got.Name != "db" {
		t.Errorf("%+v, %v", got, err)
	}
	for code, change := range map[string]func(*vm.VM){
		"invalid_labels":      func(v *vm.VM) { v.Labels = map[string]string{"": "x"} },
		"invalid_description": func(v *vm.VM) { v.Description = "\x00" },
	} {
		if _, err := w.update(t, v.ID, change); !errs.HasCode(err, code) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestResizedVMStartsWithItsNewSizes(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, v.ID, "before", vm.SnapshotRequest{})
	if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	double := func(v *vm.VM) { v.VCPUs, v.MemMiB = 2*v.VCPUs, 2*v.MemMiB }
	if _, err := w.update(t, v.ID, double); err != nil {
		t.Fatal(err)
	}
	if _, err := w.update(t, v.ID, func(v *vm.VM) { v.VCPUs = 99 }); !errs.HasCode(err, "invalid_vcpu_count") {
		t.Errorf("too many CPUs: %v", err)
	}
	started, err := w.Start(t.Context(), access.Owner(owner), v.ID)
	if err != nil || started.VCPUs != 2*v.VCPUs || started.MemMiB != 2*v.MemMiB {
		t.Fatalf("%d CPUs, %d MiB, %v", started.VCPUs, started.MemMiB, err)
	}
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); !errs.HasCode(err, "vm_resized") {
		t.Errorf("a snapshot of other sizes: %v", err)
	}
	if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.update(t, v.ID, double); !errs.HasCode(err, "vm_not_stopped") {
		t.Errorf("of a sleeping VM: %v", err)
	}
}

func TestDeleteIf(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	failed := errs.New(errs.Unmet, "precondition_failed", "no")
	err := w.DeleteIf(t.Context(), access.Owner(owner), v.ID, func(now vm.VM) error {
		if now.ID != v.ID {
			t.Errorf("asked about %q", now.ID)
		}
		return failed
	})
	if !errs.Is(err, errs.Unmet) {
		t.Errorf("%v", err)
	}
	requireAwake(t, w, v)
	if err := w.DeleteIf(t.Context(), access.Owner(owner), v.ID, func(vm.VM) error { return nil }); err != nil {
		t.Error(err)
	}
	w.requireNothing(t)
}
