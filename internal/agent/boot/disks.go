package boot

import (
	"fmt"

	"github.com/hatchvm/hatch/internal/agent/drives"
	"github.com/hatchvm/hatch/internal/agent/uevent"
)

// disks are the device files of the base image and the VM's own disk. base is "" in
// mode copy.
type disks struct {
	base, own string
}

// missing returns the serial of a disk that the mode needs and d lacks, or "".
func (d disks) missing(m mode) string {
	if m == overlay && d.base == "" {
		return drives.Base
	}
	if d.own == "" {
		return drives.Own
	}
	return ""
}

// findDisks waits for the disks that the mode needs. order has the disks' serials if
// the VMM could not set them.
func findDisks(devices *uevent.Listener, m mode, order []string) (disks, error) {
	var d disks
	devices.Await(diskTimeout, func() bool {
		d = scanDisks("/sys", "/dev", order)
		return d.missing(m) == ""
	})
	if serial := d.missing(m); serial != "" {
		return d, fmt.Errorf("no disk with the serial %s has appeared in %v; check that the initramfs has virtio_blk for this kernel", serial, diskTimeout)
	}
	return d, nil
}

func scanDisks(sys, dev string, order []string) disks {
	found := drives.BySerial(sys, dev, order)
	return disks{base: found[drives.Base], own: found[drives.Own]}
}
