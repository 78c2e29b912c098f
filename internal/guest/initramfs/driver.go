package initramfs

// Driver is a driver that a guest's kernel needs.
type Driver struct {
	Name     string   // for messages
	Modules  []string // any of these provides it
	Optional bool     // the guest boots without it
}

// Required lists the drivers of a guest whose root has this format, in the order
// in which they are loaded.
func Required(rootfsFormat string, overlay bool) []Driver {
	drivers := []Driver{
		{Name: "the virtio MMIO transport", Modules: []string{"virtio_mmio"}},
		{Name: "virtio block devices", Modules: []string{"virtio_blk"}},
	}
	formats := []string{rootfsFormat}
	if overlay && rootfsFormat != "ext4" {
		formats = append(formats, "ext4") // the VM's own disk has it
	}
	for _, format := range formats {
		if format != "squashfs" {
			// Requested by name from the kernel's crypto interface, by some file systems as
			// soon as they are loaded: the dependencies of modules do not list it.
			drivers = append(drivers, Driver{Name: "CRC32C", Modules: []string{"crc32c_generic", "crc32c", "crc32c_cryptoapi", "crc32c_intel"}, Optional: true})
		}
		drivers = append(drivers, Driver{Name: "the file system " + format, Modules: []string{format}})
	}
	if overlay {
		drivers = append(drivers, Driver{Name: "overlay file systems", Modules: []string{"overlay"}})
	}
	return append(drivers,
		Driver{Name: "virtio consoles", Modules: []string{"virtio_console"}},
		Driver{Name: "virtio network devices", Modules: []string{"virtio_net"}},
		Driver{Name: "virtio random numbers", Modules: []string{"virtio_rng"}, Optional: true},
		Driver{Name: "ISO 9660 for cloud-init's seed", Modules: []string{"isofs"}, Optional: true},
		Driver{Name: "reporting a panic to the host", Modules: []string{"pvpanic_mmio"}, Optional: true},
		Driver{Name: "the power button", Modules: []string{"button"}, Optional: true},
		Driver{Name: "giving free memory back", Modules: []string{"virtio_balloon"}, Optional: true},
		Driver{Name: "virtio sockets", Modules: []string{"vmw_vsock_virtio_transport"}, Optional: true},
	)
}

// ModuleNames returns the names of all modules that an archive may contain.
func ModuleNames() []string {
	seen := map[string]bool{}
	var names []string
	for _, format := range []string{"ext4", "squashfs", "erofs", "xfs", "btrfs"} {
		for _, d := range Required(format, true) {
			for _, name := range d.Modules {
				if !seen[name] {
					seen[name] = true
					names = append(names, name)
				}
			}
		}
	}
	return names
}
