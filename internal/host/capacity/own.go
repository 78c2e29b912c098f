package capacity

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The memory of hatchd itself in MiB: an eighth of the host's, in this range.
const (
	minOwnMiB = 256
	maxOwnMiB = 4096
)

// cgroupMount is where cgroups are mounted.
const cgroupMount = "/sys/fs/cgroup"

// OwnLimit returns how much memory, in bytes, hatchd itself should stay within on this
// host: a small part of the host's memory, which is for VMs, and less than its cgroup
// allows, because the kernel ends what exceeds that.
func OwnLimit() (int64, error) {
	memMiB, err := hostMemMiB()
	if err != nil {
		return 0, err
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil { // a kernel without cgroups
		return ownLimit(memMiB, math.MaxInt64), nil
	}
	return ownLimit(memMiB, cgroupLimit(cgroupMount, self)), nil
}

// ownLimit returns the limit in bytes; cgroup is in bytes, too.
func ownLimit(memMiB, cgroup int64) int64 {
	return min(min(max(memMiB/8, minOwnMiB), maxOwnMiB)<<20, cgroup/10*9)
}

// cgroupLimit returns the lowest memory limit, in bytes, of a process's cgroup and
// those above it. self is the content of its file /proc/self/cgroup, and mount is where
// the hierarchy of cgroups v2, or those of v1, are mounted. Without a limit it returns
// math.MaxInt64.
func cgroupLimit(mount string, self []byte) int64 {
	limit := int64(math.MaxInt64)
	for line := range bytes.Lines(self) {
		of := strings.SplitN(strings.TrimSpace(string(line)), ":", 3) // number, controllers, path
		if len(of) < 3 {
			continue
		}
		root, file := mount, "memory.max"
		if of[1] != "" {
			if !slices.Contains(strings.Split(of[1], ","), "memory") {
				continue
			}
			root, file = filepath.Join(mount, "memory"), "memory.limit_in_bytes"
		}
		for dir := filepath.Clean("/" + of[2]); ; dir = filepath.Dir(dir) {
			text, err := os.ReadFile(filepath.Join(root, dir, file))
			if n, parseErr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && parseErr == nil {
				limit = min(limit, n)
			} // else "max", or the root, which has no such file
			if dir == "/" {
				break
			}
		}
	}
	return limit
}
