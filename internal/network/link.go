package network

import (
	"context"
	"net"
	"net/netip"
	"os"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Link is one VM's connection to its network: a TAP and its rules on the bridge.
type Link struct {
	VMID     string
	Hostname string
	Tap      string
	MAC      net.HardwareAddr
	Address  netip.Addr
	In, Out  vmm.NetworkLimit // of what the guest receives and sends
	// Asleep says that the guest's memory is saved, and with it its connections, which
	// go on once it is woken.
	Asleep bool
}

// Traffic counts what went over a guest's network device, as the guest sees
// it: Rx is what it received.
type Traffic struct {
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
}

// Attacher connects VMs to the network. All methods may be called again after a
// failure.
type Attacher interface {
	// Attach makes the TAP, puts it on the bridge isolated from its neighbours,
	// drops what does not come from the link's MAC and address, applies the rate
	// limits, and serves the address by DHCP. The returned file is the TAP's; the
	// TAP lives as long as a process has it open. On error nothing of the link is
	// left.
	Attach(ctx context.Context, l Link) (*os.File, error)

	// Reattach does the same for a TAP that a live VMM has open.
	Reattach(ctx context.Context, l Link) error

	// Detach undoes Attach, and ends the connections of a VM that is not asleep: no
	// packet of them reaches the next VM with the address. Nothing to undo is no error.
	Detach(ctx context.Context, l Link) error

	// Traffic counts what went through the link since it was attached, also by
	// an earlier daemon. Errors: errs.NotFound when nothing is attached.
	Traffic(ctx context.Context, l Link) (Traffic, error)
}
