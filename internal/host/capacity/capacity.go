// Package capacity says how much of the host VMs may use: its CPUs, its memory
// and the file system of the data directory, each times the operator's
// overcommit factor, less the reserve of the host itself.
//
// It does not count what VMs use; the store does, inside the transaction of a
// create. Start at [New].
package capacity

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/space"
)

// Overcommit are factors on the host's sizes; 1 means no overcommit.
type Overcommit struct {
	Memory, Disk float64
}

// Reserves of the host itself.
const (
	reserveMemMiB  = 256
	reserveDiskMiB = 512
)

// Host implements vm.Host for the machine it runs on.
type Host struct {
	dataDir string
	cgroup  string
	memMiB  int64
	bootID  string
	over    Overcommit
}

// New reads the size of the host's memory. dataDir is where VMs' disks lie, and cgroup
// that of VMs' cgroups; bootID identifies this boot of the host.
func New(dataDir, cgroup, bootID string, over Overcommit) (*Host, error) {
	memMiB, err := hostMemMiB()
	if err != nil {
		return nil, err
	}
	return &Host{dataDir: dataDir, cgroup: cgroup, memMiB: memMiB, bootID: bootID, over: over}, nil
}

// hostMemMiB returns the size of the host's memory.
func hostMemMiB() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("cannot read the size of the host's memory: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var kib int64
		if strings.HasPrefix(lines.Text(), "MemTotal:") {
			if _, err := fmt.Sscanf(lines.Text(), "MemTotal: %d kB", &kib); err != nil {
				return 0, fmt.Errorf("cannot read MemTotal of /proc/meminfo: %w", err)
			}
			return kib >> 10, nil
		}
	}
	return 0, fmt.Errorf("cannot read the size of the host's memory: /proc/meminfo has no MemTotal")
}

// BootID identifies this boot of the host.
func (h *Host) BootID() string { return h.bootID }

// IsFull reports whether err says that a file system is full.
func (h *Host) IsFull(err error) bool { return space.IsFull(err) }

// CPUs returns the number of CPUs this process may use.
func (h *Host) CPUs() int { return runtime.NumCPU() }

// MemMiB returns the memory VMs may take in all. It is no more than the limit of their
// cgroup now, of which the kernel would end VMs that are not at fault.
func (h *Host) MemMiB() int64 {
	limit := cgroupLimit(cgroupMount, []byte("0::"+h.cgroup+"\n1:memory:"+h.cgroup)) >> 20
	return min(int64(float64(h.memMiB-reserveMemMiB)*h.over.Memory), limit)
}

// DiskMiB returns the size that VMs' disks may have in all. Disks are sparse, so
// that their sum may exceed the free space.
// Errors: errs.Exhausted when the file system is nearly full.
func (h *Host) DiskMiB() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(h.dataDir, &fs); err != nil {
		return 0, fmt.Errorf("cannot read the size of the data directory's file system: %w", err)
	}
	if err := space.Require(h.dataDir, "a VM", 0, reserveDiskMiB<<20); err != nil {
		return 0, err
	}
	total := int64(fs.Blocks) * fs.Bsize >> 20
	return int64(float64(total-reserveDiskMiB) * h.over.Disk), nil
}
