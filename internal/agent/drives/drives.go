// Package drives finds the guest's disks by the serials that the host gave them, or
// by their order where a VMM cannot set a disk's serial.
//
// It neither opens nor mounts a disk. Start at [BySerial].
package drives

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
)

// Serials of the disks that a root is assembled from: the image's, and the VM's own.
const (
	Base = "hatch-root"
	Own  = "hatch-disk"
)

// BySerial returns the device files of the disks by serial. sys is /sys, dev is
// /dev. order has the serials of the virtio disks if the VMM could not set them.
func BySerial(sys, dev string, order []string) map[string]string {
	found := map[string]string{}
	entries, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return found
	}
	for _, e := range entries {
		serial, err := os.ReadFile(filepath.Join(sys, "block", e.Name(), "serial"))
		if err != nil {
			continue
		}
		if name := cmp.Or(inOrder(order, e.Name()), strings.TrimSpace(string(serial))); name != "" {
			found[name] = filepath.Join(dev, e.Name())
		}
	}
	return found
}

// Order returns the disks' serials in their order from a kernel command line, or nil
// if it has none. The last one of several such parameters counts.
func Order(cmdline string) []string {
	var order []string
	for word := range strings.FieldsSeq(cmdline) {
		if list, ok := strings.CutPrefix(word, "hatch.disks="); ok && list != "" {
			order = strings.Split(list, ",")
		}
	}
	return order
}

// inOrder returns the serial of a virtio disk by its place in the order, or "". Linux
// names such disks vda, vdb and so on, as it finds them.
func inOrder(order []string, name string) string {
	for i, serial := range order {
		if name == "vd"+string(rune('a'+i)) {
			return serial
		}
	}
	return ""
}
