package rootfs

import (
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/image/kernel"
)

// need is a driver that a VM needs, and its purpose.
type need struct {
	driver  kernel.Driver
	purpose string
}

// The drivers that every VM needs.
var common = []need{
	{kernel.Driver{Module: "virtio_mmio", Config: "VIRTIO_MMIO"}, "the bus that all devices of a VM are on"},
	{kernel.Driver{Module: "virtio_blk", Config: "VIRTIO_BLK"}, "disks"},
	{kernel.Driver{Module: "virtio_console", Config: "VIRTIO_CONSOLE"}, "hatchd's channel into the guest"},
	{kernel.Driver{Module: "virtio_net", Config: "VIRTIO_NET"}, "the network"},
}

// The drivers of the overlay mode: without them a VM gets a copy of the root.
var overlay = []need{
	{kernel.Driver{Module: "overlay", Config: "OVERLAY_FS"}, "a shared root that each VM can write to"},
	{kernel.Driver{Module: "ext4", Config: "EXT4_FS"}, "the VM's disk"},
}

var isofs = need{kernel.Driver{Module: "isofs", Config: "ISO9660_FS"}, "the disk that cloud-init reads its data from"}

var rootDrivers = map[string]kernel.Driver{
	"ext4":     {Module: "ext4", Config: "EXT4_FS"},
	"squashfs": {Module: "squashfs", Config: "SQUASHFS"},
	"erofs":    {Module: "erofs", Config: "EROFS_FS"},
	"xfs":      {Module: "xfs", Config: "XFS_FS"},
	"btrfs":    {Module: "btrfs", Config: "BTRFS_FS"},
}

// optional are modules that VMs use if they exist.
var optional = []string{"virtio_rng"}

// features are parts of the kernel that are never modules. Only a configuration
// shows whether a kernel has them.
var features = []need{
	{kernel.Driver{Config: "BLK_DEV_INITRD"}, "starting from an initramfs"},
	{kernel.Driver{Config: "DEVTMPFS"}, "device files"},
	{kernel.Driver{Config: "ACPI"}, "finding the devices and powering off"},
	{kernel.Driver{Config: "SERIAL_8250_CONSOLE"}, "the serial console"},
}

// needs is what an image requires of its kernel.
type needs struct {
	form format
	all  []need // in either disk mode
}

func needsOf(form format, cloudInit bool) needs {
	n := needs{form: form, all: append([]need{}, common...)}
	n.all = append(n.all, need{rootDrivers[form.name], "the root file system, which is " + form.name})
	if cloudInit {
		n.all = append(n.all, isofs)
	}
	return n
}

// names returns the names of all modules that VMs need or use.
func (n needs) names(more []string) []string {
	var names []string
	for _, d := range append(append([]need{}, n.all...), overlay...) {
		names = append(names, d.driver.Module)
	}
	return append(append(names, optional...), more...)
}

// judge returns the disk mode and the drivers that are missing for it.
func (n needs) judge(has func(kernel.Driver) bool) (image.DiskMode, []need) {
	missing := lacking(n.all, has)
	lacksOverlay := lacking(overlay, has)
	switch {
	case len(lacksOverlay) == 0:
		return image.DiskOverlay, missing
	case n.form.writable:
		return image.DiskCopy, missing
	}
	return image.DiskOverlay, append(missing, lacksOverlay...)
}

func lacking(needs []need, has func(kernel.Driver) bool) []need {
	var missing []need
	for _, n := range needs {
		if !has(n.driver) {
			missing = append(missing, n)
		}
	}
	return missing
}

// missingDrivers is the error for a kernel without drivers that every VM needs.
func missingDrivers(version string, missing []need, searched string) error {
	var drivers, options []string
	for _, m := range missing {
		name := m.driver.Module
		if name == "" {
			name = "CONFIG_" + m.driver.Config
		}
		drivers = append(drivers, fmt.Sprintf("%s (%s)", name, m.purpose))
		options = append(options, "CONFIG_"+m.driver.Config+"=y")
	}
	if version == "" {
		version = "of unknown version"
	}
	return errs.InvalidField("kernel_path", "the kernel %s has no driver, neither built in nor as a module %s, for: %s",
		version, searched, strings.Join(drivers, "; ")).
		WithHint("give the directory with this kernel's modules (such as /lib/modules/VERSION) as modules_path, put it beside the kernel as modules/VERSION, or give a kernel that is built with %s",
			strings.Join(options, ", "))
}
