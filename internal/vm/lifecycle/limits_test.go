package lifecycle_test

import (
	"errors"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

var someLimits = vmm.RateLimits{
	Disk:       vmm.DiskLimit{BytesPerSecond: 8 << 20, OpsPerSecond: 500},
	NetworkOut: vmm.NetworkLimit{BytesPerSecond: 1 << 20},
}

// few are the capabilities of a driver that can do nothing that one may lack.
var few = vmm.Capabilities{EvenVCPUs: true, MaxVCPUs: 2}

// requireLimits checks what a VM says of itself, and what its machine was
// started with.
func (w *world) requireLimits(t *testing.T, v vm.VM) {
	t.Helper()
	if got := w.driver.Limits(v.ID); v.RateLimits != someLimits || got != someLimits {
		t.Errorf("%s has the limits %+v, and its machine %+v", v.ID, v.RateLimits, got)
	}
}

func TestRateLimitsStayWithTheVM(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{RateLimits: &someLimits}})
	w.requireLimits(t, v)
	snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
	for what, do := range map[string]func() (vm.VM, error){
		"restart": func() (vm.VM, error) { return w.Restart(t.Context(), access.Owner(owner), v.ID) },
		"wake": func() (vm.VM, error) {
			_, err := w.Sleep(t.Context(), access.Owner(owner), v.ID)
			woken, wakeErr := w.Wake(t.Context(), access.Owner(owner), v.ID)
			return woken, errors.Join(err, wakeErr)
		},
		"restore": func() (vm.VM, error) { return w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID) },
	} {
		again, err := do()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		w.requireLimits(t, again)
	}
	forks, err := w.Fork(t.Context(), owner, v.ID, vm.CloneRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	made, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	w.requireLimits(t, forks.VMs[0])
	w.requireLimits(t, made.VMs[0])
}

func TestVMWithLimitsIsClonedFromAGuestWithout(t *testing.T) {
	w, s := newWarmWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{RateLimits: &someLimits}})
	w.requireOwn(t, []vm.VM{v})
	w.requireLimits(t, v)
	if len(s.missed) != 0 {
		t.Errorf("it has booted: missed %v", s.missed)
	}
}

func TestUnsupportedByTheDriverHasAHint(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.Capabilities = few
	requireUnsupported := func(err error, code, field string) {
		t.Helper()
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Unsupported || e.Code != code || e.Field != field || e.Hint == "" {
			t.Errorf("the error is %v, want the code %s of %q", err, code, field)
		}
	}
	_, err := w.Create(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{RateLimits: &someLimits}})
	requireUnsupported(err, "rate_limits_unsupported", "rate_limits.disk")
	_, err = w.Create(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{VCPUs: new(3)}})
	requireUnsupported(err, "vcpus_unsupported", "vcpu_count")
	if all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(all) != 1 {
		t.Errorf("there are %v, %v", all, err)
	}
	_, err = w.Sleep(t.Context(), access.Owner(owner), v.ID)
	requireUnsupported(err, "sleep_unsupported", "")
	_, err = w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{})
	requireUnsupported(err, "snapshot_unsupported", "")
	_, err = w.Fork(t.Context(), owner, v.ID, vm.CloneRequest{Count: 1})
	requireUnsupported(err, "snapshot_unsupported", "")
	_, err = w.Create(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{Driver: "firecracker"}})
	requireUnsupported(err, "vmm_unavailable", "vmm")
	requireAwake(t, w, v)
}

func TestNetworkLimitsHoldWithEveryDriver(t *testing.T) {
	limits := vmm.RateLimits{NetworkIn: vmm.NetworkLimit{BytesPerSecond: 2 << 20}, NetworkOut: vmm.NetworkLimit{BytesPerSecond: 1 << 20}}
	for lacks, want := range map[bool]vmm.RateLimits{false: limits, true: {}} {
		w := newWorld(t)
		if lacks {
			w.driver.Capabilities = few
		}
		v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{RateLimits: &limits}})
		if l := w.network.Links()[v.ID]; l.In != limits.NetworkIn || l.Out != limits.NetworkOut {
			t.Errorf("the link has the limits %+v and %+v", l.In, l.Out)
		}
		if got := w.driver.Limits(v.ID); got != want {
			t.Errorf("the machine has the limits %+v, want %+v", got, want)
		}
	}
}
