package initramfs

// Driver is something a guest's kernel must, or should, be able to do.
type Driver struct {
	Name     string   // in words, for a message
	Modules  []string // any one of these provides it
	Optional bool     // a guest boots without it
}

// Required lists the drivers of a guest whose root has this format, in the
// order in which they are to be loaded.
func Required(rootfsFormat string, overlay bool) []Driver {
	drivers := []Driver{
		{Name: "the virtio MMIO transport", Modules: []string{"virtio_mmio"}},
		{Name: "virtio block devices", Modules: []string{"virtio_blk"}},
	}
	formats := []string{rootfsFormat}
	if overlay && rootfsFormat != "ext4" {
		formats = append(formats, "ext4") // of the VM's own disk
	}
	for _, format := range formats {
		drivers = append(drivers, Driver{Name: "the file system " + format, Modules: []string{format}})
		drivers = append(drivers, checksums(format)...)
	}
	if overlay {
		drivers = append(drivers, Driver{Name: "overlay file systems", Modules: []string{"overlay"}})
	}
	return append(drivers,
		Driver{Name: "virtio consoles", Modules: []string{"virtio_console"}},
		Driver{Name: "virtio network devices", Modules: []string{"virtio_net"}},
		Driver{Name: "virtio random numbers", Modules: []string{"virtio_rng"}, Optional: true},
		Driver{Name: "ISO 9660 for cloud-init's seed", Modules: []string{"isofs"}, Optional: true},
		Driver{Name: "telling the host of a panic", Modules: []string{"pvpanic_mmio"}, Optional: true},
		Driver{Name: "the power button", Modules: []string{"button"}, Optional: true},
		Driver{Name: "giving free memory back", Modules: []string{"virtio_balloon"}, Optional: true},
		Driver{Name: "virtio sockets", Modules: []string{"vmw_vsock_virtio_transport"}, Optional: true},
	)
}

// ModuleNames returns every module that any archive may hold, by name.
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

// checksums are what a file system asks the kernel's crypto interface for by
// name; no dependency of its module tells.
func checksums(format string) []Driver {
	crc32c := Driver{Name: "CRC32C", Modules: []string{"crc32c_generic", "crc32c", "crc32c_cryptoapi", "crc32c_intel"}, Optional: true}
	switch format {
	case "ext4", "xfs", "btrfs":
		return []Driver{crc32c}
	default:
		return nil
	}
}
