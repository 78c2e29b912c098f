// Package drives finds the guest's disks by what the host calls them: by their
// serials, or by their order where a VMM cannot give a disk a serial of its own.
//
// It opens none and mounts none. Start at [BySerial].
package drives

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
)

// BySerial returns the device files of the disks by serial. sys is /sys, dev is
// /dev. order has the serials of virtio disks, where they have none of their own.
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

// Order reads the serials in their order from a kernel command line: of a word
// given twice the last one counts. None is nil.
func Order(cmdline string) []string {
	var order []string
	for _, word := range strings.Fields(cmdline) {
		if list, ok := strings.CutPrefix(word, "hatch.disks="); ok && list != "" {
			order = strings.Split(list, ",")
		}
	}
	return order
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
