// Package capacity tells how much of the host VMs may take: its CPUs, its
// memory and the file system of the data directory, each times the operator's
// overcommit factor, less what the host keeps for itself.
//
// It does not count what VMs have taken, each for itself and by sharing; the
// store does, inside the transaction of a create. Start at [New].
package capacity

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
)

// Overcommit are factors on what the host has; 1 means no overcommit.
type Overcommit struct {
	Memory, Disk float64
}

// What the host keeps for itself.
const (
	reserveMemMiB  = 256
	reserveDiskMiB = 512
)

// Host implements vm.Host for the machine it runs on.
type Host struct {
	dataDir string
	memMiB  int64
	over    Overcommit
}

// New reads the host's memory. dataDir is where VMs' disks lie.
func New(dataDir string, over Overcommit) (*Host, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("cannot tell the host's memory: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var kib int64
		if strings.HasPrefix(lines.Text(), "MemTotal:") {
			if _, err := fmt.Sscanf(lines.Text(), "MemTotal: %d kB", &kib); err != nil {
				return nil, fmt.Errorf("cannot read MemTotal of /proc/meminfo: %w", err)
			}
			return &Host{dataDir: dataDir, memMiB: kib >> 10, over: over}, nil
		}
	}
	return nil, fmt.Errorf("cannot tell the host's memory: /proc/meminfo has no MemTotal")
}

// CPUs returns the number of CPUs this process may use.
func (h *Host) CPUs() int { return runtime.NumCPU() }

// MemMiB returns the memory VMs may take in all.
func (h *Host) MemMiB() int64 {
	return int64(float64(h.memMiB-reserveMemMiB) * h.over.Memory)
}

// DiskMiB returns the disk VMs' own disks may take in all. Disks are sparse,
// so the sum may be above what is free.
// Errors: errs.Exhausted when the file system itself is nearly full.
func (h *Host) DiskMiB() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(h.dataDir, &fs); err != nil {
		return 0, fmt.Errorf("cannot tell the size of the data directory's file system: %w", err)
	}
	total := int64(fs.Blocks) * fs.Bsize >> 20
	free := int64(fs.Bavail) * fs.Bsize >> 20
	if free < reserveDiskMiB {
		return 0, errs.New(errs.Exhausted, "disk_full", "the host's disk has %d MiB left; %d are kept for the host itself", free, reserveDiskMiB).
			WithHint("delete VMs or images, or give the data directory more room").
			WithCause(errs.Shortage{Bytes: (reserveDiskMiB - free) << 20})
	}
	return int64(float64(total-reserveDiskMiB) * h.over.Disk), nil
}
