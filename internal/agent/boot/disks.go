package boot

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
	var d disks
	entries, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return d
	}
	for _, e := range entries {
		serial, err := os.ReadFile(filepath.Join(sys, "block", e.Name(), "serial"))
		if err != nil {
			continue
		}
		switch cmp.Or(inOrder(order, e.Name()), strings.TrimSpace(string(serial))) {
		case serialBase:
			d.base = filepath.Join(dev, e.Name())
		case serialOwn:
			d.own = filepath.Join(dev, e.Name())
		}
	}
	return d
}

// inOrder returns what the order says of a virtio disk, which Linux calls vda,
// vdb and so on as it finds them; "" when it says nothing.
func inOrder(order []string, name string) string {
	for i, serial := range order {
		if name == "vd"+string(rune('a'+i)) {
			return serial
		}
	}
	return ""
}
