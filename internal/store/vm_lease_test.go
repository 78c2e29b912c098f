package store

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// wanting creates a VM that requests an address or a MAC.
func wanting(t testing.TB, s *Store, id string, want network.Request) (vm.VM, error) {
	t.Helper()
	anImage(t, s)
	v, err := s.CreateVM(t.Context(), newVM(id), want, pools(t), vm.Capacity{})
	return v, err
}

func mac(text string) net.HardwareAddr {
	m, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return m
}

func TestSmallestFreeNumberIsLeased(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		for i := range 3 {
			createVM(t, s, newVM(fmt.Sprintf("vm_%d", i)))
		}
		noError(t, s.DeleteVM(t.Context(), "vm_1"))
		want := network.Lease{Address: addr("10.9.0.3"), MAC: mac("02:fc:00:00:00:03"), Tap: "tap1", SSHPort: 16001, UID: 900001}
		if got := createVM(t, s, newVM("vm_3")).Lease; !reflect.DeepEqual(got, want) {
			t.Errorf("in the gap: %+v, want %+v", got, want)
		}
		want = network.Lease{Address: addr("10.9.0.5"), MAC: mac("02:fc:00:00:00:05"), Tap: "tap3", SSHPort: 16003, UID: 900003}
		if got := createVM(t, s, newVM("vm_4")).Lease; !reflect.DeepEqual(got, want) {
			t.Errorf("at the end: %+v, want %+v", got, want)
		}
	})
}

func TestGatewayInTheMiddleIsNotLeased(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		p := poolsOf(t, "10.9.0.2/29", 9)
		var got []string
		for i := range 6 {
			v, err := s.CreateVM(t.Context(), newVM(fmt.Sprintf("vm_%d", i)), network.Request{}, p, vm.Capacity{})
			if i == 5 {
				hasCode(t, err, errs.Exhausted, "addresses_exhausted")
				break
			}
			noError(t, err)
			got = append(got, v.Lease.Address.String())
		}
		if all := strings.Join(got, " "); all != "10.9.0.1 10.9.0.3 10.9.0.4 10.9.0.5 10.9.0.6" {
			t.Errorf("given: %s", all)
		}
	})
}

func TestPoolsRunDry(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		for code, change := range map[string]func(*network.Pools){
			"ssh_ports_exhausted": func(p *network.Pools) { p.SSHMax = p.SSHMin },
			"uids_exhausted":      func(p *network.Pools) { p.UIDMax = p.UIDMin },
		} {
			p := pools(t)
			change(&p)
			_, err := s.CreateVM(t.Context(), newVM("vm_b"), network.Request{}, p, vm.Capacity{})
			hasCode(t, err, errs.Exhausted, code)
		}
		if n := count(t, s, "vms"); n != 1 {
			t.Errorf("%d rows", n)
		}
	})
}

func TestPortsOfOtherProgramsAreSkipped(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		p := pools(t)
		p.PortBusy = func(port int) bool { return port != 16001 && port != 16003 }
		for i, want := range []int{16001, 16003} {
			v, err := s.CreateVM(t.Context(), newVM(fmt.Sprintf("vm_%d", i)), network.Request{}, p, vm.Capacity{})
			noError(t, err)
			if v.Lease.SSHPort != want {
				t.Errorf("port %d, want %d", v.Lease.SSHPort, want)
			}
		}
		_, err := s.CreateVM(t.Context(), newVM("vm_2"), network.Request{}, p, vm.Capacity{})
		hasCode(t, err, errs.Exhausted, "ssh_ports_exhausted")
	})
}

func TestPortTakenMeanwhileIsReplaced(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		p := pools(t)
		v, err := s.CreateVM(t.Context(), newVM("vm_a"), network.Request{}, p, vm.Capacity{})
		noError(t, err)
		p.PortBusy = func(port int) bool { return port == v.Lease.SSHPort }
		again, err := s.LeaseVM(t.Context(), v.ID, p, vm.Capacity{})
		noError(t, err)
		if again.Lease.SSHPort == v.Lease.SSHPort || again.Lease.Address != v.Lease.Address || again.Lease.UID != v.Lease.UID {
			t.Errorf("from %+v to %+v", v.Lease, again.Lease)
		}
	})
}

func TestWantedAddressAndMAC(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		chosen := mac("02:00:00:00:00:99")
		v, err := wanting(t, s, "vm_a", network.Request{Address: addr("10.9.0.5"), MAC: chosen})
		noError(t, err)
		if v.Lease.Address != addr("10.9.0.5") || v.Lease.MAC.String() != chosen.String() {
			t.Errorf("lease %+v", v.Lease)
		}
		_, err = wanting(t, s, "vm_b", network.Request{Address: addr("10.9.0.5")})
		hasCode(t, err, errs.Conflict, "guest_ip_taken")
		_, err = wanting(t, s, "vm_b", network.Request{MAC: chosen})
		hasCode(t, err, errs.Conflict, "guest_mac_taken")
		for _, bad := range []string{"10.9.0.0", "10.9.0.1", "10.9.0.7", "10.8.0.2", "::1"} {
			_, err = wanting(t, s, "vm_b", network.Request{Address: addr(bad)})
			hasCode(t, err, errs.Invalid, "invalid_guest_ip")
		}
	})
}

// A MAC that a caller chose and that belongs to a free address makes that
// address unusable for others, but fails no caller that asked for neither.
func TestAddressWhoseMACIsTakenIsSkipped(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		_, err := wanting(t, s, "vm_a", network.Request{Address: addr("10.9.0.6"), MAC: mac("02:fc:00:00:00:02")})
		noError(t, err)
		v, err := wanting(t, s, "vm_b", network.Request{})
		noError(t, err)
		if v.Lease.Address != addr("10.9.0.3") {
			t.Errorf("address %s", v.Lease.Address)
		}
		_, err = wanting(t, s, "vm_c", network.Request{Address: addr("10.9.0.2")})
		hasCode(t, err, errs.Conflict, "guest_mac_taken")
		v, err = wanting(t, s, "vm_c", network.Request{Address: addr("10.9.0.2"), MAC: mac("02:00:00:00:00:01")})
		noError(t, err)
		if v.Lease.Address != addr("10.9.0.2") {
			t.Errorf("address %s", v.Lease.Address)
		}
	})
}

func TestReleaseAndLeaseAgain(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		before := createVM(t, s, newVM("vm_b"))
		noError(t, s.ReleaseVM(t.Context(), "vm_b"))
		noError(t, s.ReleaseVM(t.Context(), "vm_b")) // again: the former lease is still known
		released, err := s.VM(t.Context(), access.Everyone, "vm_b")
		noError(t, err)
		if !reflect.DeepEqual(released.Lease, network.Lease{}) {
			t.Errorf("lease %+v", released.Lease)
		}
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		again, err := s.LeaseVM(t.Context(), "vm_b", pools(t), vm.Capacity{})
		noError(t, err)
		if again.Lease.Address != before.Lease.Address || again.Lease.MAC.String() != before.Lease.MAC.String() || again.Lease.Tap != "tap0" {
			t.Errorf("lease %+v, had %+v", again.Lease, before.Lease)
		}
		if again.State != vm.Starting || len(again.Labels) != 2 {
			t.Errorf("state %s, labels %v", again.State, again.Labels)
		}
	})
}

func TestLeaseAgainWhenTheOldOneIsTaken(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		chosen := mac("02:00:00:00:00:99")
		_, err := wanting(t, s, "vm_a", network.Request{Address: addr("10.9.0.2"), MAC: chosen})
		noError(t, err)
		noError(t, s.ReleaseVM(t.Context(), "vm_a"))
		createVM(t, s, newVM("vm_b")) // takes 10.9.0.2
		v, err := s.LeaseVM(t.Context(), "vm_a", pools(t), vm.Capacity{})
		noError(t, err)
		if v.Lease.Address != addr("10.9.0.3") || v.Lease.MAC.String() != chosen.String() {
			t.Errorf("lease %+v", v.Lease)
		}
		noError(t, s.ReleaseVM(t.Context(), "vm_a"))
		_, err = wanting(t, s, "vm_c", network.Request{MAC: chosen}) // takes the MAC, and 10.9.0.3
		noError(t, err)
		v, err = s.LeaseVM(t.Context(), "vm_a", pools(t), vm.Capacity{})
		noError(t, err)
		if v.Lease.Address != addr("10.9.0.4") || v.Lease.MAC.String() != "02:fc:00:00:00:04" {
			t.Errorf("lease %+v", v.Lease)
		}
	})
}

func TestLeaseOnAnotherNetwork(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		noError(t, s.ReleaseVM(t.Context(), "vm_a"))
		v, err := s.LeaseVM(t.Context(), "vm_a", poolsOf(t, "192.168.7.1/24", 9), vm.Capacity{})
		noError(t, err)
		if v.Lease.Address != netip.MustParseAddr("192.168.7.2") || v.Lease.MAC.String() != "02:fc:00:00:00:02" {
			t.Errorf("lease %+v", v.Lease)
		}
	})
}

func TestCompleteLeaseIsUnchanged(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		before := createVM(t, s, newVM("vm_a"))
		after, err := s.LeaseVM(t.Context(), "vm_a", poolsOf(t, "192.168.7.1/24", 9), vm.Capacity{})
		noError(t, err)
		if !reflect.DeepEqual(after.Lease, before.Lease) {
			t.Errorf("lease %+v, had %+v", after.Lease, before.Lease)
		}
	})
}

func TestCapacity(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		limit := vm.Capacity{MemMiB: 1200, DiskMiB: 3000} // two of 512 and 1024 MiB
		create := func(id string) error {
			_, err := s.CreateVM(t.Context(), newVM(id), network.Request{}, pools(t), limit)
			return err
		}
		noError(t, create("vm_a"))
		noError(t, create("vm_b"))
		err := create("vm_c")
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		for _, number := range []string{"512", "1024", "1200"} {
			if !strings.Contains(err.Error(), number) {
				t.Errorf("no %s in %q", number, err)
			}
		}
		_, err = s.UpdateVM(t.Context(), "vm_a", func(v *vm.VM) { v.State = vm.Stopped })
		noError(t, err)
		err = create("vm_c") // a stopped VM takes no memory, but its disk
		hasCode(t, err, errs.Exhausted, "disk_exhausted")
		limit.DiskMiB = 0
		noError(t, create("vm_c"))
		_, err = s.LeaseVM(t.Context(), "vm_a", pools(t), limit)
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		_, err = s.LeaseVM(t.Context(), "vm_b", pools(t), limit) // runs already
		noError(t, err)
		noError(t, s.DeleteVM(t.Context(), "vm_c"))
		_, err = s.LeaseVM(t.Context(), "vm_a", pools(t), vm.Capacity{MemMiB: 1200, DiskMiB: 1})
		noError(t, err)
	})
}

// Shared memory counts once, however many machines map it, and as long as one lives.
func TestSharedMemoryCounts(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		one, other := vmm.Shared{Inode: 7, Bytes: 100 << 20}, vmm.Shared{Inode: 8, Bytes: 1}
		for id, base := range map[string]vmm.Shared{"vm_a": one, "vm_b": one, "vm_c": other, "vm_d": {}} {
			v := newVM(id)
			v.Machine.Base = base
			createVM(t, s, v)
		}
		shared, err := s.SharedMemory(t.Context())
		noError(t, err)
		slices.SortFunc(shared, func(a, b vmm.Shared) int { return int(a.Inode) - int(b.Inode) })
		equal(t, shared, []vmm.Shared{one, other})

		held := []vmm.Shared{one, {Bytes: 50 << 20}, {Bytes: 50 << 20}} // two are not read yet
		limit := vm.Capacity{MemMiB: 4*512 + 101 + 100, Bases: func() []vmm.Shared { return held }}
		noError(t, s.CheckMemory(t.Context(), vm.VM{}, limit))
		limit.MemMiB--
		err = s.CheckMemory(t.Context(), vm.VM{}, limit)
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		if !strings.Contains(err.Error(), "shared clone memory 201 of") {
			t.Errorf("got %q", err)
		}
		equal(t, errors.Is(err, vm.ErrOwnInTheWay), true)
		held = nil
		noError(t, s.CheckMemory(t.Context(), newVM("vm_a"), limit)) // whose memory counts already
		err = s.CheckMemory(t.Context(), newVM("vm_e"), limit)
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		limit.MemMiB = 4*512 + 100 // hatchd cannot free memory that live machines share
		err = s.CheckMemory(t.Context(), newVM("vm_a"), limit)
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		equal(t, errors.Is(err, vm.ErrOwnInTheWay), false)
		equal(t, errors.Is(err, vm.ErrVMsInTheWay), true)
		huge := vm.VM{}
		huge.MemMiB = int(limit.MemMiB)
		equal(t, errors.Is(s.CheckMemory(t.Context(), huge, limit), vm.ErrVMsInTheWay), true)
		huge.MemMiB++
		equal(t, errors.Is(s.CheckMemory(t.Context(), huge, limit), vm.ErrVMsInTheWay), false)
		for _, id := range []string{"vm_a", "vm_b"} {
			_, err := s.UpdateVM(t.Context(), id, func(v *vm.VM) { v.State, v.Machine = vm.Stopped, nil })
			noError(t, err)
		}
		shared, err = s.SharedMemory(t.Context())
		noError(t, err)
		equal(t, shared, []vmm.Shared{other})
	})
}

func TestAllVMsAreCreatedOrNone(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		limit := vm.Capacity{MemMiB: 1200, DiskMiB: 3000} // two of 512 and 1024 MiB
		create := func(limit vm.Capacity, ids ...string) ([]vm.VM, error) {
			var vms []vm.VM
			for _, id := range ids {
				vms = append(vms, newVM(id))
			}
			stored, err := s.CreateVMs(t.Context(), vms, pools(t), limit)
			return stored, err
		}
		_, err := create(limit, "vm_a", "vm_b", "vm_c")
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		if !strings.Contains(err.Error(), "1536") {
			t.Errorf("what was asked for is not in %q", err)
		}
		_, err = create(vm.Capacity{DiskMiB: 3000}, "vm_a", "vm_b", "vm_c")
		hasCode(t, err, errs.Exhausted, "disk_exhausted")
		createVM(t, s, newVM("vm_x"))
		taken := newVM("vm_b")
		taken.Name = newVM("vm_x").Name
		_, err = s.CreateVMs(t.Context(), []vm.VM{newVM("vm_a"), taken}, pools(t), vm.Capacity{})
		hasCode(t, err, errs.Conflict, "name_taken")
		noError(t, s.DeleteVM(t.Context(), "vm_x"))
		if n := count(t, s, "vms"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
		stored, err := create(limit, "vm_a", "vm_b")
		noError(t, err)
		if len(stored) != 2 || stored[0].Lease.UID == stored[1].Lease.UID {
			t.Errorf("stored: %+v", stored)
		}
		for _, v := range stored {
			got, err := s.VM(t.Context(), access.Everyone, v.ID)
			noError(t, err)
			equal(t, got, v)
		}
	})
}

// A stopped VM that is leased counts at once, so two starts cannot both take
// the last memory.
func TestConcurrentStartsRespectCapacity(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ids := []string{"vm_a", "vm_b", "vm_c"}
		for _, id := range ids {
			v := newVM(id)
			v.State = vm.Stopped
			createVM(t, s, v)
		}
		var g errgroup.Group
		started := make(chan string, len(ids))
		for _, id := range ids {
			g.Go(func() error {
				_, err := s.LeaseVM(t.Context(), id, pools(t), vm.Capacity{MemMiB: 600})
				if errs.HasCode(err, "memory_exhausted") {
					return nil
				}
				started <- id
				return err
			})
		}
		noError(t, g.Wait())
		if len(started) != 1 {
			t.Errorf("%d VMs started, want 1", len(started))
		}
	})
}

// coolingPools are pools of few addresses and ports, which stay out of use for long.
func coolingPools(t testing.TB, cidr string, size int) network.Pools {
	t.Helper()
	p := poolsOf(t, cidr, size)
	p.CoolDown = time.Hour
	return p
}

func leaseOf(t testing.TB, s *Store, id string, want network.Request, p network.Pools) network.Lease {
	t.Helper()
	v, err := s.CreateVM(t.Context(), newVM(id), want, p, vm.Capacity{})
	noError(t, err)
	return v.Lease
}

func TestReleasedAddressesAndPortsCoolDown(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		p := coolingPools(t, "10.9.0.1/29", 9)
		first := leaseOf(t, s, "vm_a", network.Request{}, p)
		leaseOf(t, s, "vm_b", network.Request{}, p)
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		next := leaseOf(t, s, "vm_c", network.Request{}, p)
		if next.Address != addr("10.9.0.4") || next.SSHPort != 16002 || next.UID != first.UID || next.Tap != first.Tap {
			t.Errorf("lease %+v after %+v was released", next, first)
		}
		noError(t, s.ReleaseVM(t.Context(), "vm_c"))
		next = leaseOf(t, s, "vm_d", network.Request{}, p)
		if next.Address != addr("10.9.0.5") || next.SSHPort != 16003 {
			t.Errorf("lease %+v after a failed create", next)
		}

		p.CoolDown = 0 // as if the time had passed
		next = leaseOf(t, s, "vm_e", network.Request{}, p)
		if next.Address != first.Address || next.SSHPort != first.SSHPort {
			t.Errorf("lease %+v once the time has passed, want that of %+v", next, first)
		}
		if n := count(t, s, "numbers WHERE released_at IS NOT NULL"); n != 0 {
			t.Errorf("%d old releases are left", n)
		}
	})
}

func TestWhenAllIsCoolingTheOldestIsUsed(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		p := coolingPools(t, "10.9.0.1/29", 4) // five of each
		for i := range 5 {
			leaseOf(t, s, fmt.Sprintf("vm_%d", i), network.Request{}, p)
		}
		for at, id := range []string{"vm_3", "vm_1", "vm_2"} {
			noError(t, s.DeleteVM(t.Context(), id))
			s.mustExec(t, "UPDATE numbers SET released_at = ? WHERE released_at > ?", micros(time.Now().Add(time.Minute*time.Duration(at-10))), micros(time.Now().Add(-time.Minute)))
		}
		var got []string
		for i := range 3 {
			l := leaseOf(t, s, fmt.Sprintf("vm_n%d", i), network.Request{}, p)
			got = append(got, fmt.Sprint(l.Address, ":", l.SSHPort))
		}
		if all := strings.Join(got, " "); all != "10.9.0.5:16003 10.9.0.3:16001 10.9.0.4:16002" {
			t.Errorf("given: %s", all)
		}
		_, err := s.CreateVM(t.Context(), newVM("vm_x"), network.Request{}, p, vm.Capacity{})
		hasCode(t, err, errs.Exhausted, "uids_exhausted")
		p.UIDMax++
		_, err = s.CreateVM(t.Context(), newVM("vm_x"), network.Request{}, p, vm.Capacity{})
		hasCode(t, err, errs.Exhausted, "ssh_ports_exhausted")
		p.SSHMax++
		_, err = s.CreateVM(t.Context(), newVM("vm_x"), network.Request{}, p, vm.Capacity{})
		hasCode(t, err, errs.Exhausted, "addresses_exhausted")
	})
}

// What another program listens on, or whose MAC another VM has, is not used, however
// few are left.
func TestCoolingValuesAreChecked(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		p := coolingPools(t, "10.9.0.1/30", 0) // one of each
		p.UIDMax += 2
		leaseOf(t, s, "vm_a", network.Request{}, p)
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		p.PortBusy = func(int) bool { return true }
		_, err := s.CreateVM(t.Context(), newVM("vm_b"), network.Request{}, p, vm.Capacity{})
		hasCode(t, err, errs.Exhausted, "ssh_ports_exhausted")
	})
}

func TestARequestedAddressCoolsDownForOthers(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		account(t, s, "acc_b")
		p := coolingPools(t, "10.9.0.1/29", 9)
		want := network.Request{Address: addr("10.9.0.5")}
		leaseOf(t, s, "vm_a", want, p)
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		other := newVM("vm_b")
		other.OwnerID, other.Name = "acc_b", ""
		_, err := s.CreateVM(t.Context(), other, want, p, vm.Capacity{})
		hasCode(t, err, errs.Conflict, "guest_ip_taken")
		if l := leaseOf(t, s, "vm_c", want, p); l.Address != want.Address { // the same owner
			t.Errorf("lease %+v", l)
		}
	})
}

// A VM whose create failed gets its former address back.
func TestAVMGetsItsOwnAddressBackWhileItCools(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		p := coolingPools(t, "10.9.0.1/29", 9)
		before := leaseOf(t, s, "vm_a", network.Request{}, p)
		noError(t, s.ReleaseVM(t.Context(), "vm_a"))
		noError(t, s.ReleaseVM(t.Context(), "vm_none"))
		again, err := s.LeaseVM(t.Context(), "vm_a", p, vm.Capacity{})
		noError(t, err)
		if again.Lease.Address != before.Address || again.Lease.SSHPort == before.SSHPort {
			t.Errorf("lease %+v, had %+v", again.Lease, before)
		}
	})
}
