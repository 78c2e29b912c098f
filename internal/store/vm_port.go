package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

// leasePorts chooses the host ports of the VM's published ports: those that the spec
// names; for others the one that the lease has, if it is free, else any. had are those
// that the VM has now and keeps if it still wants them.
// Precondition: this transaction has locked the reservations.
func (t *tx) leasePorts(ctx context.Context, v vm.VM, had map[int]int, pools network.Pools) (map[int]int, error) {
	own, chosen, leased := map[int]bool{}, map[int]bool{}, map[int]int{}
	for _, host := range had {
		own[host] = true
	}
	check := func(host int) error {
		if own[host] {
			return nil
		}
		return t.checkPort(ctx, v.OwnerID, host, pools)
	}
	for _, p := range v.Ports { // before one of them is chosen for another port of the guest
		if p.Host == 0 {
			continue
		}
		if err := check(p.Host); err != nil {
			return nil, err
		}
		chosen[p.Host], leased[p.Guest] = true, p.Host
	}
	for _, p := range v.Ports {
		if leased[p.Guest] != 0 {
			continue
		}
		host := v.Lease.Ports[p.Guest]
		if host == 0 || chosen[host] || check(host) != nil {
			var err error
			if host, err = t.anyPort(ctx, pools, pools.PortMin, pools.PortMax, chosen); err != nil {
				return nil, err
			}
		}
		if host == 0 {
			return nil, errs.New(errs.Exhausted, "ports_exhausted", "cannot reserve: no host port from %d to %d is free for a published port", pools.PortMin, pools.PortMax).
				WithHint("delete VMs that are no longer needed, name a host port, or widen the range with HATCH_PORT_MIN and HATCH_PORT_MAX")
		}
		chosen[host], leased[p.Guest] = true, host
	}
	if len(leased) == 0 {
		return nil, nil
	}
	return leased, nil
}

// anyPort returns a host port from low to high that neither a VM nor another program
// uses, and that is not among those that are chosen already; 0 if there is none.
func (t *tx) anyPort(ctx context.Context, pools network.Pools, low, high int, chosen map[int]bool) (int, error) {
	free := func(port int64) (bool, error) {
		return !chosen[int(port)] && (pools.PortBusy == nil || !pools.PortBusy(int(port))), nil
	}
	port, _, err := t.choose(ctx, columnSSHPort, int64(low), int64(high), free)
	return int(port), err
}

// checkPort refuses a host port that is not free: another VM has it, as SSH port or
// published, another program listens on it, or it was another owner's until just now.
func (t *tx) checkPort(ctx context.Context, owner string, port int, pools network.Pools) error {
	var last struct {
		OwnerID    string          `db:"owner_id"`
		ReleasedAt sql.Null[int64] `db:"released_at"`
	}
	found, err := t.get(ctx, &last, "SELECT owner_id, released_at FROM numbers WHERE host_id = ? AND kind = ? AND number = ?", t.host, columnSSHPort, port)
	taken := errs.New(errs.Conflict, "port_taken", "ports: the host port %d is taken by another VM", port)
	switch {
	case err != nil:
		return fmt.Errorf("cannot look up a host port: %w", err)
	case found && last.ReleasedAt.Valid && last.OwnerID != owner:
		taken = errs.New(errs.Conflict, "port_taken", "ports: the host port %d was another user's until just now, and is out of use until %s",
			port, fromMicros(last.ReleasedAt.V).Add(pools.CoolDown).Format(time.RFC3339))
	case found && !last.ReleasedAt.Valid:
	case pools.PortBusy != nil && pools.PortBusy(port):
		return network.PortInUse(port)
	default:
		return nil
	}
	return taken.WithField("ports").WithHint("give another host port, or leave host out to get a free one")
}

// renewPorts chooses anew the host ports that another program uses by now. One that the
// spec names cannot be replaced. Precondition: no listener of the VM is open, unless
// pools.PortBusy is nil.
func (t *tx) renewPorts(ctx context.Context, v vm.VM, pools network.Pools) (map[int]int, error) {
	had := map[int]int{}
	for guest, host := range v.Lease.Ports {
		if pools.PortBusy == nil || !pools.PortBusy(host) {
			had[guest] = host
		}
	}
	for _, p := range v.Ports {
		if p.Host != 0 && v.Lease.Ports[p.Guest] == p.Host && had[p.Guest] == 0 {
			return nil, network.PortInUse(p.Host)
		}
	}
	v.Lease.Ports = had
	return t.leasePorts(ctx, v, had, pools)
}

// countPorts returns the owners of the VMs on this host that have published ports, by
// host port.
func (t *tx) countPorts(ctx context.Context) (map[int64]string, error) {
	var rows []vmRow
	if err := selectAll(ctx, t, &rows, "SELECT owner_id, ports FROM vms WHERE host_id = ? AND ports <> ''", t.host); err != nil {
		return nil, err
	}
	owners := map[int64]string{}
	for _, row := range rows {
		for _, port := range row.publishedPorts() {
			owners[port] = row.OwnerID
		}
	}
	return owners, nil
}
