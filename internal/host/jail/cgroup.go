//go:build linux

package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Cgroup says what a process and all its threads may use together.
type Cgroup struct {
	Name     string // unique on this host, without a slash
	MemBytes int64
	CPUs     float64 // 1.5 means one and a half processors
	Tasks    int
}

const (
	cgroupRoot = "/sys/fs/cgroup"
	ourFolder  = "hatch"

	cpuPeriod = 100_000 // µs
)

// group is a process's directories: one in the unified hierarchy (v2), or one
// in each of v1's. A nil group is none.
type group struct {
	dirs    []string
	unified bool
}

// newGroup makes the directories and sets their limits. What cannot be had is
// said in the note; the process then runs without it.
func newGroup(c *Cgroup) (g *group, note string) {
	if c == nil {
		return nil, ""
	}
	g = &group{unified: isUnified(cgroupRoot)}
	var faults []error
	if g.unified {
		faults = append(faults, g.makeUnified(cgroupRoot, *c))
	} else {
		for controller, limits := range v1Limits(*c) {
			faults = append(faults, g.make(filepath.Join(cgroupRoot, controller, ourFolder, c.Name), limits))
		}
	}
	if err := errors.Join(faults...); err != nil {
		note = "no cgroup limits: " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return g, note
}

// findGroup returns the directories that an earlier daemon made.
func findGroup(name string) *group {
	if name == "" {
		return nil
	}
	dirs, err := filepath.Glob(filepath.Join(cgroupRoot, "*", ourFolder, name))
	if isUnified(cgroupRoot) {
		dirs, err = filepath.Glob(filepath.Join(cgroupRoot, ourFolder, name))
	}
	if err != nil {
		return nil // the name is no pattern, so it is none of ours
	}
	return &group{dirs: dirs}
}

func isUnified(root string) bool {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return err == nil
}

// setting is a control file and what goes into it.
type setting struct{ file, value string }

func v1Limits(c Cgroup) map[string][]setting {
	return map[string][]setting{
		"memory": {{"memory.limit_in_bytes", strconv.FormatInt(c.MemBytes, 10)}},
		"pids":   {{"pids.max", strconv.Itoa(c.Tasks)}},
		"cpu":    {{"cpu.cfs_period_us", strconv.Itoa(cpuPeriod)}, {"cpu.cfs_quota_us", quota(c)}, v1Weight(c.CPUs)},
	}
}

func v2Limits(c Cgroup) []setting {
	return []setting{
		{"memory.max", strconv.FormatInt(c.MemBytes, 10)},
		{"memory.oom.group", "1"},
		{"pids.max", strconv.Itoa(c.Tasks)},
		{"cpu.max", quota(c) + " " + strconv.Itoa(cpuPeriod)},
		v2Weight(c.CPUs),
	}
}

// A group counts as much as that many processes without one when processors are
// short. By itself it would count as one, however many are in it.
func v1Weight(processes float64) setting {
	return setting{"cpu.shares", strconv.Itoa(int(1024 * processes))}
}

func v2Weight(processes float64) setting {
	const most = 10_000
	return setting{"cpu.weight", strconv.Itoa(min(int(100*processes), most))}
}

func quota(c Cgroup) string { return strconv.Itoa(int(c.CPUs * cpuPeriod)) }

// makeUnified makes a directory in the unified hierarchy, and first lets it
// and its parent have the controllers.
func (g *group) makeUnified(root string, c Cgroup) error {
	parent := filepath.Join(root, ourFolder)
	if err := mkdir(parent); err != nil {
		return err
	}
	for _, dir := range []string{root, parent} {
		if err := set(dir, setting{"cgroup.subtree_control", "+memory +pids +cpu"}); err != nil {
			return err
		}
	}
	return g.make(filepath.Join(parent, c.Name), v2Limits(c))
}

// make makes one directory with its limits, and keeps it only if it has them.
func (g *group) make(dir string, limits []setting) error {
	parent := filepath.Dir(dir)
	if err := mkdir(parent); err != nil {
		return err
	}
	if err := weigh(parent); err != nil {
		return err
	}
	if err := mkdir(dir); err != nil {
		return err
	}
	for _, l := range limits {
		if err := set(dir, l); err != nil {
			_ = os.Remove(dir)
			return err
		}
	}
	g.dirs = append(g.dirs, dir)
	return nil
}

// weigh lets all our groups together count as much as the host's processors, where
// the directory is one in which processors are shared out.
func weigh(parent string) error {
	all := float64(runtime.NumCPU())
	for _, s := range []setting{v1Weight(all), v2Weight(all)} {
		if err := set(parent, s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// set writes a control file; it must be there already.
func set(dir string, s setting) error {
	f, err := os.OpenFile(filepath.Join(dir, s.file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.value)
	return errors.Join(err, f.Close())
}

// enter puts the calling thread into the group, so that what it forks is born in
// there: a thread that moves itself moves at once, while to move another process
// the kernel waits some 10 ms until no processor can have missed it. It is for v1;
// v2 takes a whole process or none.
func (g *group) enter() error {
	if g == nil || g.unified {
		return nil
	}
	var faults []error
	for _, dir := range g.dirs {
		faults = append(faults, set(dir, setting{"tasks", "0"}))
	}
	return errors.Join(faults...)
}

// cradle is the directory in the unified hierarchy that a process is to be born
// in, which clone does for a parent elsewhere; nil when there is none.
func (g *group) cradle() (*os.File, error) {
	if g == nil || !g.unified || len(g.dirs) == 0 {
		return nil, nil
	}
	return os.Open(g.dirs[0])
}

// wasOverMemory reports whether the kernel killed a process of the group for
// its memory.
func (g *group) wasOverMemory() bool {
	if g == nil {
		return false
	}
	for _, dir := range g.dirs {
		for _, file := range []string{"memory.events", "memory.oom_control"} {
			if data, err := os.ReadFile(filepath.Join(dir, file)); err == nil && oomKills(string(data)) > 0 {
				return true
			}
		}
	}
	return false
}

func oomKills(data string) int {
	for line := range strings.Lines(data) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" {
			n, _ := strconv.Atoi(f[1]) // not a number: none
			return n
		}
	}
	return 0
}

// remove deletes the directories of a process that is gone. The kernel may
// need a moment after the exit to see them empty, and has no event for it.
func (g *group) remove() {
	if g == nil {
		return
	}
	for _, dir := range g.dirs {
		for range 100 {
			if err := os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			<-time.After(time.Millisecond)
		}
	}
}

// Members lists the processes in the cgroup of this name, which each is in from its
// first moment on: before it is the program that it is to be. Without cgroups
// there are none. The daemon, whose thread passes through, is not counted.
func Members(name string) (pids []int, err error) {
	g := findGroup(name)
	if g == nil {
		return nil, nil
	}
	for _, dir := range g.dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read who is in a cgroup: %w", err)
		}
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && pid != os.Getpid() && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// Forget removes the cgroup of this name, which has nobody in it any more.
func Forget(name string) { findGroup(name).remove() }

// Sweep removes cgroups of ours whose process ended while no daemon watched,
// and the folder they are in. The kernel refuses for those that are in use.
func Sweep() error {
	patterns := []string{
		filepath.Join(cgroupRoot, "*", ourFolder, "*"), filepath.Join(cgroupRoot, ourFolder, "*"),
		filepath.Join(cgroupRoot, "*", ourFolder), filepath.Join(cgroupRoot, ourFolder),
	}
	for _, pattern := range patterns {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("cannot look for cgroups: %w", err)
		}
		for _, dir := range dirs {
			if st, err := os.Stat(dir); err == nil && st.IsDir() {
				_ = os.Remove(dir)
			}
		}
	}
	return nil
}
