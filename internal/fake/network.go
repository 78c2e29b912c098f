package fake

import (
	"context"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

var (
	_ network.Attacher  = (*Network)(nil)
	_ network.Forwarder = (*Forwards)(nil)
)

// Network records which links are attached. Calls: Attach, Traffic.
type Network struct {
	Calls *Calls

	Carried network.Traffic // what every attached link has carried

	mu    sync.Mutex
	links map[string]network.Link // by VM id
}

// Links returns the attached links by VM id.
func (n *Network) Links() map[string]network.Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.links)
}

// Attach implements network.Attacher. It returns no TAP.
func (n *Network) Attach(ctx context.Context, l network.Link) (*os.File, error) {
	return nil, n.Reattach(ctx, l)
}

// Reattach implements network.Attacher.
func (n *Network) Reattach(_ context.Context, l network.Link) error {
	if err := n.Calls.Begin("Attach"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.links == nil {
		n.links = map[string]network.Link{}
	}
	n.links[l.VMID] = l
	return nil
}

// Detach implements network.Attacher.
func (n *Network) Detach(_ context.Context, l network.Link) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.links, l.VMID)
	return nil
}

// Traffic implements network.Attacher.
func (n *Network) Traffic(_ context.Context, l network.Link) (network.Traffic, error) {
	if err := n.Calls.Begin("Traffic"); err != nil {
		return network.Traffic{}, err
	}
	if _, attached := n.Links()[l.VMID]; !attached {
		return network.Traffic{}, errs.New(errs.NotFound, "tap_missing", "VM %s has no TAP", l.VMID)
	}
	return n.Carried, nil
}

// Forwards records which ports are open; it listens on none. Calls: Open.
type Forwards struct {
	Calls *Calls

	mu   sync.Mutex
	open map[int]forward // by port of the host
}

type forward struct {
	vmID string
	to   network.Forward
}

// VMs returns the VM ids by open port.
func (f *Forwards) VMs() map[int]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	vms := make(map[int]string, len(f.open))
	for port, open := range f.open {
		vms[port] = open.vmID
	}
	return vms
}

// Of returns the open forwards of a VM, by port of the host.
func (f *Forwards) Of(vmID string) map[int]network.Forward {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[int]network.Forward{}
	for port, open := range f.open {
		if open.vmID == vmID {
			all[port] = open.to
		}
	}
	return all
}

// Forward implements network.Forwarder.
func (f *Forwards) Forward(vmID string, forwards []network.Forward) error {
	if len(forwards) > 0 {
		if err := f.Calls.Begin("Open"); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.open, func(_ int, open forward) bool {
		return open.vmID == vmID && !slices.ContainsFunc(forwards, open.to.Equal)
	})
	for _, to := range forwards {
		if open, ok := f.open[to.Host]; ok && open.vmID != vmID {
			return errs.New(errs.Conflict, "ssh_port_in_use", "the SSH port %d is in use on this host", to.Host)
		}
		if f.open == nil {
			f.open = map[int]forward{}
		}
		f.open[to.Host] = forward{vmID, to}
	}
	return nil
}
