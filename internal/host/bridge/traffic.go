package bridge

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/errs"
)

// Traffic counts what went through a TAP since it was made, as the host sees it:
// Rx is what the guest sent.
type Traffic struct {
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
}

// Traffic reads a TAP's counters. It asks the kernel through netlink, because
// /sys shows the network namespace it was mounted in.
//
// Errors: errs.NotFound with code tap_missing when there is no such TAP of ours.
func (b *Bridge) Traffic(tap string) (Traffic, error) {
	link, err := netlink.LinkByName(tap)
	if isNotFound(err) || err == nil && !b.ours(link) {
		return Traffic{}, errs.New(errs.NotFound, "tap_missing", "the TAP %s does not exist", tap)
	}
	if err != nil {
		return Traffic{}, fmt.Errorf("cannot look up TAP %s: %w", tap, err)
	}
	n := link.Attrs().Statistics
	if n == nil {
		return Traffic{}, fmt.Errorf("the kernel reports no traffic of TAP %s", tap)
	}
	return Traffic{RxBytes: n.RxBytes, TxBytes: n.TxBytes, RxPackets: n.RxPackets, TxPackets: n.TxPackets}, nil
}
