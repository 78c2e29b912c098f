package boot

import (
	"fmt"

	"github.com/hatchvm/hatch/internal/agent/drives"
	"github.com/hatchvm/hatch/internal/agent/uevent"
)

// Serials of the disks that a root is made of.
const (
	serialBase = "hatch-root"
	serialOwn  = "hatch-disk"
)

// disks are device files; base is "" in copy mode.
type disks struct {
	base, own string
}

func (d disks) missing(m mode) string {
	if m == overlay && d.base == "" {
		return serialBase
	}
	if d.own == "" {
		return serialOwn
	}
	return ""
}

// findDisks waits until the disks that the mode needs are there. order has their
// serials, where they have none of their own.
func findDisks(devices *uevent.Listener, m mode, order []string) (disks, error) {
	var d disks
	devices.Await(diskPatience, func() bool {
		d = scanDisks("/sys", "/dev", order)
		return d.missing(m) == ""
	})
	if serial := d.missing(m); serial != "" {
		return d, fmt.Errorf("no disk with the serial %s has appeared; is virtio_blk for this kernel in its modules?", serial)
	}
	return d, nil
}

func scanDisks(sys, dev string, order []string) disks {
	found := drives.BySerial(sys, dev, order)
	return disks{base: found[serialBase], own: found[serialOwn]}
}
