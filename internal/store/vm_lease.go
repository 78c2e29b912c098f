package store

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/netip"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

// maxTaps is the highest TAP number: five digits, so that a prefix of up to
// ten bytes makes an interface name of at most fifteen.
const maxTaps = 99_999

// whole reports whether the lease is complete.
func whole(v vm.VM) bool {
	return v.Lease.UID != 0 && (!v.EnableNetwork || v.Lease.Address.IsValid())
}

// lease chooses the lease of v. Precondition: this transaction
// has locked the reservations.
func (t *tx) lease(ctx context.Context, v vm.VM, want network.Request, pools network.Pools) (network.Lease, sql.Null[int64], error) {
	none := sql.Null[int64]{}
	if err := t.freeReleased(ctx, pools); err != nil {
		return network.Lease{}, none, err
	}
	uid, err := t.take(ctx, columnUID, pools.UIDMin, pools.UIDMax, "uids_exhausted", "user id")
	if err != nil {
		return network.Lease{}, none, err
	}
	ports, err := t.leasePorts(ctx, v, nil, pools)
	if err != nil || !v.EnableNetwork {
		return network.Lease{UID: uid, Ports: ports}, none, err
	}
	port, err := t.sshPort(ctx, ports, pools)
	if err != nil {
		return network.Lease{}, none, err
	}
	tap, err := t.take(ctx, columnTap, 0, maxTaps, "taps_exhausted", "TAP number")
	if err != nil {
		return network.Lease{}, none, err
	}
	address, mac, err := t.address(ctx, v.OwnerID, want, pools)
	if err != nil {
		return network.Lease{}, none, err
	}
	name := fmt.Sprintf("%s%d", pools.TapPrefix, tap)
	return network.Lease{Address: address, MAC: mac, Tap: name, SSHPort: port, UID: uid, Ports: ports},
		sql.Null[int64]{V: int64(tap), Valid: true}, nil
}

// sshPort returns a port that neither a VM nor another program uses, and that is not
// among the VM's published ones.
func (t *tx) sshPort(ctx context.Context, published map[int]int, pools network.Pools) (int, error) {
	chosen := map[int]bool{}
	for _, port := range published {
		chosen[port] = true
	}
	port, err := t.anyPort(ctx, pools, pools.SSHMin, pools.SSHMax, chosen)
	if err == nil && port == 0 {
		err = exhausted("ssh_ports_exhausted", "SSH port", pools.SSHMax)
	}
	return port, err
}

// take returns the smallest number from low to high that is not in use.
func (t *tx) take(ctx context.Context, column string, low, high int, code, what string) (int, error) {
	n, found, err := t.firstFree(ctx, column, int64(low), int64(high))
	if err == nil && !found {
		err = exhausted(code, what, high)
	}
	return int(n), err
}

func exhausted(code, what string, high int) error {
	return errs.New(errs.Exhausted, code, "cannot reserve: no %s up to %d is free", what, high).
		WithHint("delete VMs that are no longer needed, or widen the range in the configuration")
}

// taken reports whether a VM has this value in the column.
func (t *tx) taken(ctx context.Context, column string, value any) (bool, error) {
	var one int
	taken, err := t.get(ctx, &one, "SELECT 1 FROM vms WHERE host_id = ? AND "+column+" = ?", t.host, value)
	if err != nil {
		return false, fmt.Errorf("cannot look up a %s: %w", column, err)
	}
	return taken, nil
}

// address chooses an address and its MAC.
func (t *tx) address(ctx context.Context, owner string, want network.Request, pools network.Pools) (netip.Addr, net.HardwareAddr, error) {
	if want.MAC != nil {
		taken, err := t.taken(ctx, "guest_mac", want.MAC.String())
		if err != nil {
			return netip.Addr{}, nil, err
		}
		if taken {
			return netip.Addr{}, nil, macTaken(want.MAC, "another VM has it")
		}
	}
	if want.Address.IsValid() {
		return t.wantedAddress(ctx, owner, want, pools)
	}
	return t.anyAddress(ctx, want.MAC, pools.Network)
}

func (t *tx) wantedAddress(ctx context.Context, owner string, want network.Request, pools network.Pools) (netip.Addr, net.HardwareAddr, error) {
	n := pools.Network
	why, usable := n.Usable(want.Address)
	if !usable {
		return netip.Addr{}, nil, errs.InvalidField("guest_ip", "%s; want a free address of %s", why, n.Prefix)
	}
	taken, err := t.taken(ctx, "guest_ip", addressNumber(want.Address))
	if err != nil {
		return netip.Addr{}, nil, err
	}
	if taken {
		return netip.Addr{}, nil, errs.New(errs.Conflict, "guest_ip_taken", "guest_ip: %s is taken by another VM", want.Address).
			WithField("guest_ip").WithHint("give a free address of %s, or leave guest_ip out", n.Prefix)
	}
	if err := t.checkReleased(ctx, addressNumber(want.Address), owner, pools); err != nil {
		return netip.Addr{}, nil, err
	}
	if want.MAC != nil {
		return want.Address, want.MAC, nil
	}
	mac := n.MAC(want.Address)
	if taken, err = t.taken(ctx, "guest_mac", mac.String()); err != nil {
		return netip.Addr{}, nil, err
	}
	if taken {
		return netip.Addr{}, nil, macTaken(mac, fmt.Sprintf("it is derived from guest_ip %s, but another VM has it", want.Address))
	}
	return want.Address, mac, nil
}

func macTaken(mac net.HardwareAddr, why string) error {
	return errs.New(errs.Conflict, "guest_mac_taken", "guest_mac: %s is taken: %s", network.FormatMAC(mac), why).
		WithField("guest_mac").WithHint("give another guest_mac, or leave guest_ip and guest_mac out")
}

// anyAddress returns a free address. It skips addresses whose MAC another VM requested
// explicitly.
func (t *tx) anyAddress(ctx context.Context, mac net.HardwareAddr, n network.Network) (netip.Addr, net.HardwareAddr, error) {
	first, last := n.Hosts()
	free := func(number int64) (bool, error) {
		address := addressOf(number)
		if _, usable := n.Usable(address); !usable || mac != nil {
			return usable, nil
		}
		taken, err := t.taken(ctx, "guest_mac", n.MAC(address).String())
		return !taken, err
	}
	number, found, err := t.choose(ctx, columnAddress, addressNumber(n.At(first)), addressNumber(n.At(last)), free)
	if err != nil {
		return netip.Addr{}, nil, err
	}
	if !found {
		return netip.Addr{}, nil, errs.New(errs.Exhausted, "addresses_exhausted", "cannot reserve an address: all of %s are taken", n.Prefix).
			WithHint("delete VMs that are no longer needed, or set HATCH_BRIDGE_CIDR to a larger network")
	}
	address := addressOf(number)
	if mac == nil {
		mac = n.MAC(address)
	}
	return address, mac, nil
}

// formerLease returns the parts of the VM's former lease that are still free.
func (t *tx) formerLease(ctx context.Context, row vmRow, pools network.Pools) (network.Request, error) {
	var want network.Request
	mac := parseMAC(row.LastGuestMAC)
	if row.LastGuestIP.Valid {
		address := addressOf(row.LastGuestIP.V)
		if _, usable := pools.Network.Usable(address); usable {
			want.Address = address
			if mac.String() == pools.Network.MAC(address).String() {
				mac = nil // it was derived from the address
			}
		}
	}
	if mac != nil {
		want.MAC = mac
	}
	return t.dropTaken(ctx, row.OwnerID, want, pools)
}

// dropTaken removes the parts of want that another VM has by now.
func (t *tx) dropTaken(ctx context.Context, owner string, want network.Request, pools network.Pools) (network.Request, error) {
	if want.MAC != nil {
		taken, err := t.taken(ctx, "guest_mac", want.MAC.String())
		if err != nil {
			return network.Request{}, err
		}
		if taken {
			want.MAC = nil
		}
	}
	if !want.Address.IsValid() {
		return want, nil
	}
	_, _, err := t.wantedAddress(ctx, owner, want, pools)
	if errs.Is(err, errs.Conflict) {
		want.Address, err = netip.Addr{}, nil
	}
	return want, err
}
