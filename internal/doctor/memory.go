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
	leastMemoryMiB = 256
	goodMemoryMiB  = 1024
)

func (e examiner) memory(context.Context) Check {
	const name = "memory"
	free, err := e.meminfoMiB("MemAvailable")
	switch {
	case err != nil:
		return warn(name, "cannot tell how much memory is free: %v", err)
	case free < leastMemoryMiB:
		return fail(name, "%d MiB are available; one VM needs some %d MiB", free, leastMemoryMiB).hint("stop something, or add memory")
	case free < goodMemoryMiB:
		return warn(name, "%d MiB are available: room for one VM of 512 MiB", free).hint("create VMs with less memory (--memory 256m)")
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

// guestMemory looks at the tmpfs that guests' memory is kept in.
func (e examiner) guestMemory(context.Context) Check {
	const name = "guest_memory"
	if e.Driver == "fake" {
		return pass(name, "not needed with HATCH_VMM=fake")
	}
	place, err := e.MemoryPlace(e.MemoryDir)
	host, hostErr := e.meminfoMiB("MemTotal")
	size, used := place.Size>>20, place.Used>>20
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return warn(name, "cannot look at %s, where guests' memory is kept: %v", e.MemoryDir, err).hint("run hatch doctor as root")
	case !place.Mounted:
		return e.mountable(name)
	case !place.Tmpfs:
		return warn(name, "a file system of another kind than tmpfs is mounted on %s: guests' memory is on a disk, and slow", e.MemoryDir).
			hint("stop the VMs and hatchd, and unmount it; hatchd mounts a tmpfs there")
	case hostErr == nil && size < host:
		return warn(name, "the tmpfs on %s takes %d MiB, and the host has %d: a guest that finds no room in it ends", e.MemoryDir, size, host).
			mendedBy("mount -o remount,size=100%% %s", quote(e.MemoryDir))
	}
	return pass(name, "%d of %d MiB are in use in the tmpfs on %s", used, size, e.MemoryDir)
}

// mountable tries what hatchd does when it starts.
func (e examiner) mountable(name string) Check {
	if err := e.MountMemory(e.existing()); err != nil {
		return fail(name, "no tmpfs can be mounted for guests' memory: %v", err).
			hint("run hatchd as root; in a container, give it CAP_SYS_ADMIN and let it mount")
	}
	return pass(name, "hatchd mounts a tmpfs on %s when it starts", e.MemoryDir)
}

// swap never fails: what a guest has in its memory may be secret, and that is
// for its owner to weigh.
func (e examiner) swap(context.Context) Check {
	const name = "swap"
	text, err := e.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // not there in a kernel without swap
		return warn(name, "cannot tell whether the host swaps: %v", err).hint("swapon --show tells")
	}
	open, closed := e.swapAreas(string(text))
	switch {
	case len(open) > 0:
		return warn(name, "the host swaps to %s: guests' memory, with keys and passwords in it, may be written there, and sleep and wake are slow then", strings.Join(open, " and ")).
			hint("swapoff -a, if the host's memory is enough (swapon --show tells what is in use), and take it out of /etc/fstab; or encrypt it with a key made at boot")
	case len(closed) > 0:
		return pass(name, "the host swaps to %s, which is encrypted or in RAM", strings.Join(closed, " and "))
	}
	return pass(name, "off; guests' memory stays in RAM")
}

// swapAreas tells areas on which what is written can be read later from those
// on which it cannot.
func (e examiner) swapAreas(swaps string) (open, closed []string) {
	for line := range strings.Lines(swaps) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0][0] != '/': // the heading
		case strings.HasPrefix(words[0], "/dev/zram"), e.encrypted(words[0]):
			closed = append(closed, words[0])
		default:
			open = append(open, words[0])
		}
	}
	return open, closed
}

// encrypted reports whether a device is one of dm-crypt.
func (e examiner) encrypted(device string) bool {
	uuid, err := e.ReadFile("/sys/class/block/" + filepath.Base(device) + "/dm/uuid")
	return err == nil && strings.HasPrefix(string(uuid), "CRYPT-")
}

// sleep tells whether the VMs that run could all be put to sleep. It never
// fails: they run on where they cannot.
func (e examiner) sleep(context.Context) Check {
	const name, remedy = "sleep", "delete VMs, snapshots or images, or set HATCH_DATA_DIR to a larger file system"
	if e.Driver == "fake" {
		return pass(name, "not needed with HATCH_VMM=fake")
	}
	free, err := e.FreeMiB(e.existing())
	if err != nil {
		return warn(name, "cannot tell whether VMs can sleep: %v", err).hint("look whether %s can be read", e.DataDir)
	}
	place, err := e.MemoryPlace(e.MemoryDir)
	used := place.Used >> 20
	if err != nil || !place.Tmpfs {
		used = 0 // guest_memory says what is wrong
	}
	room := free - e.DiskReserveMiB
	switch {
	case room <= 0:
		return warn(name, "no VM can be put to sleep: %d MiB are free for %s, and %d are kept for the host itself", free, e.DataDir, e.DiskReserveMiB).
			hint(remedy)
	case room < used:
		return warn(name, "not all VMs can be put to sleep: %d MiB of their memory are in use, and %s has room for %d beside the %d kept for the host itself",
			used, e.DataDir, room, e.DiskReserveMiB).hint(remedy)
	}
	return pass(name, "%s has room for %d MiB of guests' memory beside the %d kept for the host itself; %d are in use", e.DataDir, room, e.DiskReserveMiB, used)
}
