package store

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

// portPools are pools whose host ports for published ports are 16002 to 16005, among
// those for SSH ports.
func portPools(t testing.TB) network.Pools {
	t.Helper()
	p := poolsOf(t, "10.9.0.1/24", 5)
	p.PortMin, p.PortMax, p.CoolDown = 16002, 16005, time.Hour
	return p
}

func publishing(t testing.TB, s *Store, id string, p network.Pools, ports ...machine.Port) (vm.VM, error) {
	t.Helper()
	anImage(t, s)
	v := newVM(id)
	v.Ports = ports
	return s.CreateVM(t.Context(), v, network.Request{}, p, vm.Capacity{})
}

func TestPublishedPortsAreLeased(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		p := portPools(t)
		ports := []machine.Port{{Guest: 80}, {Guest: 443, Host: 16000, Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Name: "tls"}, {Guest: 22}}
		v, err := publishing(t, s, "vm_a", p, ports...)
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{80: 16002, 443: 16000, 22: 16003})
		equal(t, v.Lease.SSHPort, 16001) // the named one is passed over
		stored, err := s.VM(t.Context(), access.Everyone, "vm_a")
		noError(t, err)
		equal(t, stored.Lease, v.Lease)
		equal(t, stored.Ports, ports)
		equal(t, count(t, s, "numbers WHERE kind = 'ssh_port'"), 4)

		// Ports of both kinds come from one set.
		next, err := publishing(t, s, "vm_b", p, machine.Port{Guest: 80})
		noError(t, err)
		equal(t, next.Lease.Ports, map[int]int{80: 16004})
		equal(t, next.Lease.SSHPort, 16005)
		_, err = publishing(t, s, "vm_c", p, machine.Port{Guest: 80})
		hasCode(t, err, errs.Exhausted, "ports_exhausted")
		equal(t, count(t, s, "vms"), 2)
	})
}

func TestAPortOfAHostIsOneVMs(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		p := portPools(t)
		v, err := publishing(t, s, "vm_a", p, machine.Port{Guest: 80, Host: 8080})
		noError(t, err)
		for name, host := range map[string]int{"another's published port": 8080, "another's SSH port": v.Lease.SSHPort} {
			_, err := publishing(t, s, "vm_b", p, machine.Port{Guest: 80, Host: host})
			hasCode(t, err, errs.Conflict, "port_taken")
			if e, _ := errs.As(err); e.Field != "ports" || e.Hint == "" {
				t.Errorf("%s: %+v", name, e)
			}
		}
		p.PortBusy = func(port int) bool { return port == 8081 || port == 16002 }
		_, err = publishing(t, s, "vm_b", p, machine.Port{Guest: 80, Host: 8081})
		hasCode(t, err, errs.Conflict, "port_in_use")
		v, err = publishing(t, s, "vm_b", p, machine.Port{Guest: 80})
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{80: 16003})
		// Not even if the choice went wrong.
		err = s.write(t.Context(), func(tx *tx) error { return tx.useNumber(t.Context(), columnSSHPort, 8080, "acc_a") })
		if err == nil {
			t.Error("a port is stored for two VMs")
		}
	})
}

func TestPublishedPortsCoolDown(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		account(t, s, "acc_b")
		p := portPools(t)
		_, err := publishing(t, s, "vm_a", p, machine.Port{Guest: 80}, machine.Port{Guest: 81, Host: 8080})
		noError(t, err)
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		v, err := publishing(t, s, "vm_b", p, machine.Port{Guest: 80}, machine.Port{Guest: 81, Host: 8080})
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{80: 16003, 81: 8080}) // its owner may have a named one at once
		noError(t, s.DeleteVM(t.Context(), "vm_b"))
		other := newVM("vm_c")
		other.OwnerID, other.Ports = "acc_b", []machine.Port{{Guest: 81, Host: 8080}}
		_, err = s.CreateVM(t.Context(), other, network.Request{}, p, vm.Capacity{})
		hasCode(t, err, errs.Conflict, "port_taken")
		p.CoolDown = 0
		_, err = s.CreateVM(t.Context(), other, network.Request{}, p, vm.Capacity{})
		noError(t, err)
	})
}

func TestRevisedPorts(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		p := portPools(t)
		_, err := publishing(t, s, "vm_a", p, machine.Port{Guest: 80}, machine.Port{Guest: 81, Host: 8080})
		noError(t, err)
		p.PortBusy = func(port int) bool { return port == 16002 || port == 8080 } // hatchd itself listens there
		revise := func(ports ...machine.Port) (vm.VM, error) {
			return s.ReviseVM(t.Context(), access.Owner("acc_a"), "vm_a", p, func(v *vm.VM) error { v.Ports = ports; return nil })
		}
		v, err := revise(machine.Port{Guest: 80, Name: "web"}, machine.Port{Guest: 82})
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{80: 16002, 82: 16003})
		_, err = publishing(t, s, "vm_b", p, machine.Port{Guest: 80, Host: 8080})
		hasCode(t, err, errs.Conflict, "port_in_use") // it was released, and is still open
		v, err = revise(machine.Port{Guest: 82, Host: 16002}, machine.Port{Guest: 80})
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{82: 16002, 80: 16004})
		v, err = revise()
		noError(t, err)
		equal(t, len(v.Lease.Ports), 0)
		equal(t, count(t, s, "numbers WHERE kind = 'ssh_port' AND released_at IS NULL"), 1) // that of SSH
	})
}

func TestPortsAtTheNextStart(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		p := portPools(t)
		_, err := publishing(t, s, "vm_a", p, machine.Port{Guest: 80}, machine.Port{Guest: 81, Host: 8080})
		noError(t, err)
		again := func(busy ...int) (vm.VM, error) {
			p.PortBusy = func(port int) bool { return slices.Contains(busy, port) }
			return s.LeaseVM(t.Context(), "vm_a", p, vm.Capacity{})
		}
		v, err := again()
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{80: 16002, 81: 8080})
		v, err = again(16002)
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{80: 16003, 81: 8080})
		_, err = again(8080)
		hasCode(t, err, errs.Conflict, "port_in_use")

		noError(t, s.ReleaseVM(t.Context(), "vm_a"))
		v, err = s.VM(t.Context(), access.Everyone, "vm_a")
		noError(t, err)
		equal(t, v.Lease, network.Lease{})
		v, err = again()
		noError(t, err)
		equal(t, v.Lease.Ports[81], 8080)
	})
}

// A VM without a network has no SSH port, and may publish others.
func TestPortsWithoutANetwork(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		v := newVM("vm_a")
		v.EnableNetwork, v.Ports = false, []machine.Port{{Guest: 80}}
		v, err := s.CreateVM(t.Context(), v, network.Request{}, portPools(t), vm.Capacity{})
		noError(t, err)
		equal(t, v.Lease, network.Lease{UID: 900000, Ports: map[int]int{80: 16002}})
	})
}

// What is lost of the numbers is counted again from the VMs.
func TestPublishedPortsAreCounted(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		p := portPools(t)
		_, err := publishing(t, s, "vm_a", p, machine.Port{Guest: 80, Host: 8080}, machine.Port{Guest: 81})
		noError(t, err)
		s.mustExec(t, "DELETE FROM numbers")
		noError(t, s.prepare(t.Context(), Directory{HostID: testHost}))
		_, err = publishing(t, s, "vm_b", p, machine.Port{Guest: 80, Host: 8080})
		hasCode(t, err, errs.Conflict, "port_taken")
		v, err := publishing(t, s, "vm_b", p, machine.Port{Guest: 80})
		noError(t, err)
		equal(t, v.Lease.Ports, map[int]int{80: 16003})
		noError(t, s.prepare(t.Context(), Directory{HostID: testHost})) // nothing to count
		equal(t, count(t, s, "numbers WHERE kind = 'ssh_port'"), 5)
	})
}
