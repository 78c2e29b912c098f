package doctor

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	minMemoryMiB  = 256
	goodMemoryMiB = 1024
)

func (e examiner) memory(context.Context) Check {
	const name = "memory"
	free, err := e.meminfoMiB("MemAvailable")
	switch {
	case err != nil:
		return warn(name, "cannot read the available memory: %v", err)
	case free < minMemoryMiB:
		return fail(name, "%d MiB are available; one VM needs some %d MiB", free, minMemoryMiB).hint("stop other programs, or add memory")
	case free < goodMemoryMiB:
		return warn(name, "%d MiB are available: enough for one VM of 512 MiB", free).hint("create VMs with less memory (--memory 256m)")
	}
	return pass(name, "%d MiB available", free)
}

// meminfoMiB reads one number of /proc/meminfo.
func (e examiner) meminfoMiB(key string) (int64, error) {
	info, err := e.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib >> 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no " + key)
}

// guestMemory checks the tmpfs for guests' memory.
func (e examiner) guestMemory(context.Context) Check {
	const name = "guest_memory"
	place, err := e.MemoryPlace(e.MemoryDir)
	host, hostErr := e.meminfoMiB("MemTotal")
	size, used := place.Size>>20, place.Used>>20
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return warn(name, "cannot read %s, the directory for guests' memory: %v", e.MemoryDir, err).hint("run hatch doctor as root")
	case !place.Mounted: // hatchd mounts it when it starts
		if err := e.MountMemory(e.existing()); err != nil {
			return fail(name, "no tmpfs can be mounted for guests' memory: %v", err).
				hint("run hatchd as root; in a container, give it CAP_SYS_ADMIN and let it mount")
		}
		return pass(name, "hatchd mounts a tmpfs on %s when it starts", e.MemoryDir)
	case !place.Tmpfs:
		return warn(name, "a file system of another kind than tmpfs is mounted on %s: guests' memory is on a disk, and slow", e.MemoryDir).
			hint("stop the VMs and hatchd, and unmount it; hatchd mounts a tmpfs there")
	case hostErr == nil && size < host:
		return warn(name, "the tmpfs on %s has a size of %d MiB, and the host has %d: a guest ends when the tmpfs is full", e.MemoryDir, size, host).
			fix("mount -o remount,size=100%% %s", quote(e.MemoryDir))
	}
	return pass(name, "%d of %d MiB are in use in the tmpfs on %s", used, size, e.MemoryDir)
}

// swap never fails: whether secrets in guests' memory may be swapped is the
// operator's decision.
func (e examiner) swap(context.Context) Check {
	const name = "swap"
	text, err := e.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without swap has no such file
		return warn(name, "cannot read whether the host swaps: %v", err).hint("see swapon --show")
	}
	open, closed := e.swapAreas(string(text))
	switch {
	case len(open) > 0:
		return warn(name, "the host swaps to %s: guests' memory, with keys and passwords in it, may be written there, and sleep and wake are slow then", strings.Join(open, " and ")).
			hint("swapoff -a, if the host's memory is enough (see swapon --show), and remove it from /etc/fstab; or encrypt it with a key made at boot")
	case len(closed) > 0:
		return pass(name, "the host swaps to %s, which is encrypted or in RAM", strings.Join(closed, " and "))
	}
	return pass(name, "off; guests' memory stays in RAM")
}

// swapAreas returns the swap areas whose content can be read later, and the others.
func (e examiner) swapAreas(swaps string) (open, closed []string) {
	for line := range strings.Lines(swaps) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || fields[0][0] != '/': // the heading
		case strings.HasPrefix(fields[0], "/dev/zram"), e.encrypted(fields[0]):
			closed = append(closed, fields[0])
		default:
			open = append(open, fields[0])
		}
	}
	return open, closed
}

// encrypted reports whether a device is dm-crypt's.
func (e examiner) encrypted(device string) bool {
	uuid, err := e.ReadFile("/sys/class/block/" + filepath.Base(device) + "/dm/uuid")
	return err == nil && strings.HasPrefix(string(uuid), "CRYPT-")
}

// sleep checks whether all running VMs could be put to sleep. It never fails: a VM
// that cannot sleep keeps running.
func (e examiner) sleep(context.Context) Check {
	const name, remedy = "sleep", "delete VMs, snapshots or images, or set HATCH_DATA_DIR to a larger file system"
	free, err := e.FreeMiB(e.existing())
	if err != nil {
		return warn(name, "cannot test whether VMs can sleep: %v", err).hint("check that %s can be read", e.DataDir)
	}
	place, err := e.MemoryPlace(e.MemoryDir)
	used := place.Used >> 20
	if err != nil || !place.Tmpfs {
		used = 0 // guest_memory reports the cause
	}
	left := free - e.DiskReserveMiB
	switch {
	case left <= 0:
		return warn(name, "no VM can be put to sleep: %d MiB are free for %s, and %d are reserved for the host", free, e.DataDir, e.DiskReserveMiB).
			hint(remedy)
	case left < used:
		return warn(name, "not all VMs can be put to sleep: %d MiB of their memory are in use, and %s has room for %d beside the %d reserved for the host",
			used, e.DataDir, left, e.DiskReserveMiB).hint(remedy)
	}
	return pass(name, "%s has room for %d MiB of guests' memory beside the %d reserved for the host; %d are in use", e.DataDir, left, e.DiskReserveMiB, used)
}
