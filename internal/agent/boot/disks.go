package boot

import (
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

// findDisks waits until the disks that the mode needs are there.
func findDisks(devices *uevent.Listener, m mode) (disks, error) {
	var d disks
	devices.Await(diskPatience, func() bool {
		d = scanDisks("/sys", "/dev")
		return d.missing(m) == ""
	})
	if serial := d.missing(m); serial != "" {
		return d, fmt.Errorf("no disk with the serial %s has appeared; is virtio_blk for this kernel in its modules?", serial)
	}
	return d, nil
}

func scanDisks(sys, dev string) disks {
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
		switch strings.TrimSpace(string(serial)) {
		case serialBase:
			d.base = filepath.Join(dev, e.Name())
		case serialOwn:
			d.own = filepath.Join(dev, e.Name())
		}
	}
	return d
}
