package boot

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/agent/nic"
	"github.com/hatchvm/hatch/internal/agent/uevent"
)

// configureNetwork brings up loopback and, unless a is nil, the interface.
func configureNetwork(a *attachment, devices *uevent.Listener) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("cannot bring up loopback: %w", err)
	}
	if a == nil {
		return nil
	}
	var link netlink.Link
	found := devices.Await(nicPatience, func() bool {
		link = nic.ByMAC(a.MAC)
		return link != nil
	})
	if !found {
		return fmt.Errorf("no interface with the address %s has appeared", a.MAC)
	}
	return a.Apply(link)
}
