package lifecycle_test

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

func publishing(ports ...machine.Port) vm.CreateRequest {
	return vm.CreateRequest{Overrides: machine.Overrides{Ports: ports}, Rights: access.AllRights}
}

// requirePorts compares the open published ports of a VM, guest's by host's.
func (w *world) requirePorts(t *testing.T, when, id string, want map[int]int) {
	t.Helper()
	got := map[int]int{}
	for host, f := range w.forwards.Of(id) {
		if f.Kind == network.ForwardPort {
			got[host] = f.Guest
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: open are %v, want %v", when, got, want)
	}
}

func TestPublishedPortsLiveAsTheSSHPort(t *testing.T) {
	w := newWorld(t)
	allowed := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	v := mustCreate(t, w, publishing(machine.Port{Guest: 80, Host: 8080, Allowed: allowed}, machine.Port{Guest: 5432}))
	open := map[int]int{8080: 80, 26001: 5432}
	w.requirePorts(t, "after a create", v.ID, open)
	want := network.Forward{Kind: network.ForwardPort, Host: 8080, Guest: 80, Address: v.Lease.Address, Allowed: allowed}
	if f := w.forwards.Of(v.ID)[8080]; !f.Equal(want) {
		t.Errorf("forwarded %+v, want %+v", f, want)
	}
	scope := access.Owner(owner)
	do := func(what string, verb func() error, want map[int]int) {
		t.Helper()
		if err := verb(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		w.requirePorts(t, "after "+what, v.ID, want)
	}
	again := func() error { w.shut(t); w.serve(t); return nil }
	stop := func() error { _, err := w.Stop(t.Context(), scope, v.ID); return err }
	start := func() error { _, err := w.Start(t.Context(), scope, v.ID); return err }
	do("a restart of hatchd", again, open)
	do("a sleep", func() error { _, err := w.Sleep(t.Context(), scope, v.ID); return err }, open)
	do("a restart of hatchd while it sleeps", again, open)
	do("a wake", func() error { _, err := w.Wake(t.Context(), scope, v.ID); return err }, open)
	do("a stop", stop, map[int]int{})
	other := mustCreate(t, w, publishing(machine.Port{Guest: 80}))
	w.requirePorts(t, "while the first VM is stopped", other.ID, map[int]int{26002: 80})
	do("a start", start, open)
	do("a delete", func() error { return w.Delete(t.Context(), scope, v.ID) }, map[int]int{})
}

// A port is open before the VMM of a VM has answered the next hatchd.
func TestPortsAreOpenBeforeAnAdoption(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, publishing(machine.Port{Guest: 80}))
	w.shut(t)
	w.failAdopts(1)
	w.serve(t)
	w.requirePorts(t, "after a failed adoption", v.ID, map[int]int{26001: 80})
}

func TestPortsOfOtherVMsAreRefused(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, publishing(machine.Port{Guest: 80, Host: 8080}))
	for code, host := range map[string]int{"port_taken": 8080, "invalid_ports": 65536} {
		if _, err := w.Create(t.Context(), owner, publishing(machine.Port{Guest: 80, Host: host})); !errs.HasCode(err, code) {
			t.Errorf("%d: %v, want %s", host, err, code)
		}
	}
	if all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(all) != 1 || all[0].ID != v.ID {
		t.Errorf("left are %v, %v", all, err)
	}
}

func TestListenersFollowAnUpdate(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, publishing(machine.Port{Guest: 80}))
	publish := func(ports ...machine.Port) (vm.VM, error) {
		return w.update(t, v.ID, func(v *vm.VM) { v.Ports = ports })
	}
	got, err := publish(machine.Port{Guest: 80, Name: "web"}, machine.Port{Guest: 81, Host: 8081})
	if err != nil || got.Lease.Ports[80] != 26001 {
		t.Fatalf("%+v, %v", got.Lease, err)
	}
	both := map[int]int{26001: 80, 8081: 81}
	w.requirePorts(t, "after an update", v.ID, both)

	// A port that cannot be opened changes nothing, the name included.
	w.calls.Fail("Open", 1, network.PortInUse(8082))
	_, err = w.update(t, v.ID, func(v *vm.VM) { v.Name, v.Ports = "new", []machine.Port{{Guest: 82, Host: 8082}} })
	if !errs.HasCode(err, "port_in_use") {
		t.Errorf("got %v, want port_in_use", err)
	}
	w.requirePorts(t, "after a failed update", v.ID, both)
	now, err := w.Get(t.Context(), access.Owner(owner), v.ID)
	if err != nil || now.Name != got.Name || !reflect.DeepEqual(now.Ports, got.Ports) || !reflect.DeepEqual(now.Lease, got.Lease) {
		t.Errorf("after a failed update: %+v, %v", now, err)
	}

	if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := publish(machine.Port{Guest: 90, Host: 9090}); err != nil {
		t.Fatal(err)
	}
	w.requirePorts(t, "stopped", v.ID, map[int]int{})
	if _, err := w.Start(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.requirePorts(t, "started", v.ID, map[int]int{9090: 90})
	if _, err := publish(machine.Port{Guest: 0}); !errs.HasCode(err, "invalid_ports") {
		t.Errorf("port 0: %v", err)
	}
}

// A fork publishes the same ports of its guest, on other ports of the host.
func TestForksHaveTheirOwnPorts(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, publishing(machine.Port{Guest: 80, Host: 8080, Name: "web"}))
	made, err := w.Fork(t.Context(), owner, v.ID, vm.CloneRequest{Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i, clone := range made.VMs {
		if want := []machine.Port{{Guest: 80, Name: "web"}}; !reflect.DeepEqual(clone.Ports, want) {
			t.Errorf("it publishes %+v, want %+v", clone.Ports, want)
		}
		w.requirePorts(t, "a fork", clone.ID, map[int]int{26001 + i: 80})
	}
	w.requirePorts(t, "the original", v.ID, map[int]int{8080: 80})
}

func TestPortsWithoutANetwork(t *testing.T) {
	w := newWorld(t)
	req := publishing(machine.Port{Guest: 80})
	req.EnableNetwork = new(false)
	v := mustCreate(t, w, req)
	want := network.Forward{Kind: network.ForwardPort, Host: 26001, Guest: 80}
	if all := w.forwards.Of(v.ID); len(all) != 1 || !all[26001].Equal(want) {
		t.Errorf("forwarded %+v, want %+v", all, want)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
}
