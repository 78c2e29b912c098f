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
	uid, err := t.take(ctx, "uid", pools.UIDMin, pools.UIDMax, "uids_exhausted", "user id")
	if err != nil || !v.EnableNetwork {
		return network.Lease{UID: uid}, none, err
	}
	port, err := t.sshPort(ctx, pools)
	if err != nil {
		return network.Lease{}, none, err
	}
	tap, err := t.take(ctx, "tap_number", 0, maxTaps, "taps_exhausted", "TAP number")
	if err != nil {
		return network.Lease{}, none, err
	}
	address, mac, err := t.address(ctx, want, pools.Network)
	if err != nil {
		return network.Lease{}, none, err
	}
	name := fmt.Sprintf("%s%d", pools.TapPrefix, tap)
	return network.Lease{Address: address, MAC: mac, Tap: name, SSHPort: port, UID: uid},
		sql.Null[int64]{V: int64(tap), Valid: true}, nil
}

// sshPort returns the smallest port that neither a VM nor another program uses.
func (t *tx) sshPort(ctx context.Context, pools network.Pools) (int, error) {
	for low := pools.SSHMin; ; low++ {
		port, err := t.take(ctx, "ssh_port", low, pools.SSHMax, "ssh_ports_exhausted", "SSH port")
		if err != nil || pools.SSHBusy == nil || !pools.SSHBusy(port) {
			return port, err
		}
		low = port
	}
}

// take returns the smallest number from low to high that no VM has in column.
func (t *tx) take(ctx context.Context, column string, low, high int, code, what string) (int, error) {
	n, found, err := t.firstFree(ctx, column, int64(low), int64(high))
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, errs.New(errs.Exhausted, code, "cannot reserve: no %s up to %d is free", what, high).
			WithHint("delete VMs that are no longer needed, or widen the range in the configuration")
	}
	return int(n), nil
}

// firstFree walks the column's index from low up to the first gap, so its cost
// depends on the values before the first gap, not on the size of the table.
func (t *tx) firstFree(ctx context.Context, column string, low, high int64) (n int64, found bool, err error) {
	taken, err := t.taken(ctx, column, low)
	if err != nil || !taken {
		return low, low <= high, err
	}
	found, err = t.get(ctx, &n, `SELECT v.`+column+` + 1 FROM vms v
		WHERE v.host_id = ? AND v.`+column+` >= ? AND v.`+column+` < ?
		AND NOT EXISTS (SELECT 1 FROM vms w WHERE w.host_id = v.host_id AND w.`+column+` = v.`+column+` + 1)
		ORDER BY v.`+column+` LIMIT 1`, t.host, low, high)
	if err != nil {
		return 0, false, fmt.Errorf("cannot find a free %s: %w", column, err)
	}
	return n, found, nil
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
func (t *tx) address(ctx context.Context, want network.Request, n network.Network) (netip.Addr, net.HardwareAddr, error) {
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
		return t.wantedAddress(ctx, want, n)
	}
	return t.anyAddress(ctx, want.MAC, n)
}

func (t *tx) wantedAddress(ctx context.Context, want network.Request, n network.Network) (netip.Addr, net.HardwareAddr, error) {
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

// anyAddress returns the smallest free address. It skips addresses whose MAC another
// VM requested explicitly.
func (t *tx) anyAddress(ctx context.Context, mac net.HardwareAddr, n network.Network) (netip.Addr, net.HardwareAddr, error) {
	first, last := n.Hosts()
	high := addressNumber(n.At(last))
	for low := addressNumber(n.At(first)); low <= high; low++ {
		number, found, err := t.firstFree(ctx, "guest_ip", low, high)
		if err != nil {
			return netip.Addr{}, nil, err
		}
		if !found {
			break
		}
		low = number
		address := addressOf(number)
		if _, usable := n.Usable(address); !usable {
			continue
		}
		if mac != nil {
			return address, mac, nil
		}
		derived := n.MAC(address)
		taken, err := t.taken(ctx, "guest_mac", derived.String())
		if err != nil {
			return netip.Addr{}, nil, err
		}
		if !taken {
			return address, derived, nil
		}
	}
	return netip.Addr{}, nil, errs.New(errs.Exhausted, "addresses_exhausted", "cannot reserve an address: all of %s are taken", n.Prefix).
		WithHint("delete VMs that are no longer needed, or set HATCH_BRIDGE_CIDR to a larger network")
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
	return t.dropTaken(ctx, want, pools.Network)
}

// dropTaken removes the parts of want that another VM has by now.
func (t *tx) dropTaken(ctx context.Context, want network.Request, n network.Network) (network.Request, error) {
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
	_, _, err := t.wantedAddress(ctx, want, n)
	if errs.Is(err, errs.Conflict) {
		want.Address, err = netip.Addr{}, nil
	}
	return want, err
}
