package capacity

import (
	"bytes"
	"fmt"
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
	for _, dir := range groups(mount, self, "memory") {
		for _, file := range []string{"memory.max", "memory.limit_in_bytes"} { // of v2 and v1
			if n, ok := number(dir, file); ok {
				limit = min(limit, n)
			}
		}
	}
	return limit
}

// fewTasks is how many processes and threads a cgroup has left when it is as good as full:
// a VMM needs about as many.
const fewTasks = 8

// CheckTasks returns an error if the cgroup of all VMs, or one above it, takes hardly any
// more processes.
func CheckTasks(cgroup string) error { return checkTasks(cgroupMount, cgroup) }

func checkTasks(mount, cgroup string) error {
	for _, dir := range groups(mount, []byte("0::"+cgroup+"\n1:pids:"+cgroup), "pids") {
		most, limited := number(dir, "pids.max")
		now, counted := number(dir, "pids.current")
		if limited && counted && now+fewTasks > most {
			return fmt.Errorf("%s has %d processes and threads, and its limit is %d", dir, now, most)
		}
	}
	return nil
}

// groups returns the directories of a process's cgroup and of those above it, in the
// hierarchies that can have the controller.
func groups(mount string, self []byte, controller string) (dirs []string) {
	for line := range bytes.Lines(self) {
		of := strings.SplitN(strings.TrimSpace(string(line)), ":", 3) // number, controllers, path
		if len(of) < 3 || of[1] != "" && !slices.Contains(strings.Split(of[1], ","), controller) {
			continue
		}
		root := mount
		if of[1] != "" {
			root = filepath.Join(mount, controller)
		}
		dir := filepath.Clean("/" + of[2])
		for ; dir != "/"; dir = filepath.Dir(dir) {
			dirs = append(dirs, filepath.Join(root, dir))
		}
		dirs = append(dirs, root)
	}
	return dirs
}

// number reads a number from a cgroup's file. There is none without a limit ("max"), and
// in the root.
func number(dir, file string) (n int64, ok bool) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	n, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}
