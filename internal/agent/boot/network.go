package boot

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/agent/nic"
	"github.com/hatchvm/hatch/internal/agent/uevent"
)

// configureNetwork sets up loopback and, unless n is nil, the network interface.
func configureNetwork(n *network, devices *uevent.Listener) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("cannot set up loopback: %w", err)
	}
	if n == nil {
		return nil
	}
	var link netlink.Link
	found := devices.Await(nicTimeout, func() bool {
		link = nic.ByMAC(n.MAC)
		return link != nil
	})
	if !found {
		return fmt.Errorf("no interface with the MAC %s has appeared in %v", n.MAC, nicTimeout)
	}
	return n.Apply(link)
}
