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

// Cgroup limits a process with all its threads.
type Cgroup struct {
	Parent   Cgroups
	Name     string // unique on this host, without a slash
	MemBytes int64
	CPUs     float64 // 1.5 means one and a half processors
	Tasks    int
}

// Cgroups is the cgroup in which hatchd makes one for each VM: a path from the root of
// the hierarchy, such as /hatch. "" means [DefaultCgroups].
type Cgroups string

const (
	// DefaultCgroups is the parent that hatchd makes itself.
	DefaultCgroups Cgroups = "/hatch"
	// UnitCgroups is the parent that systemd makes for packaging/hatch-vms.service.
	UnitCgroups Cgroups = "/system.slice/hatch-vms.service"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	cpuPeriod  = 100_000 // µs
)

// Path returns the directory in the hierarchy that is mounted at root.
func (c Cgroups) Path(root string) string {
	if c == "" {
		c = DefaultCgroups
	}
	return filepath.Join(root, string(c))
}

// all returns c and the other parents that an earlier daemon, started in another way,
// may have used.
func (c Cgroups) all() []Cgroups {
	parents := []Cgroups{DefaultCgroups, UnitCgroups}
	if c == "" || slices.Contains(parents, c) {
		return parents
	}
	return append(parents, c)
}

// group is a process's directories: one in the unified hierarchy (v2), or one
// in each of v1's. A nil group is none.
type group struct {
	dirs    []string
	unified bool
}

// newGroup makes the directories and sets their limits. The note names those that
// cannot be set; the process runs without them.
func newGroup(c *Cgroup) (g *group, note string) {
	if c == nil {
		return nil, ""
	}
	g = &group{unified: isUnified(cgroupRoot)}
	limits := map[string][]setting{cgroupRoot: v2Limits(*c)}
	if !g.unified {
		limits = map[string][]setting{}
		for controller, l := range v1Limits(*c) {
			limits[filepath.Join(cgroupRoot, controller)] = l
		}
	}
	var notes []string
	for root, l := range limits {
		parent, missing := c.Parent.usable(root)
		if err := g.make(root, parent, c.Name, l); err != nil {
			missing = "no cgroup limits: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		notes = append(notes, missing)
	}
	slices.Sort(notes)
	return g, strings.Trim(strings.Join(notes, "; "), "; ")
}

// usable returns c if it exists, else the parent that hatchd makes itself, with the
// reason. hatchd does not make the cgroup of a unit that is not started: systemd could
// not start it later, because a cgroup that limits its children takes no process.
func (c Cgroups) usable(root string) (parent Cgroups, missing string) {
	if dir := c.Path(root); dir != DefaultCgroups.Path(root) {
		if _, err := os.Stat(dir); err != nil {
			return DefaultCgroups, fmt.Sprintf("%s does not exist, so %s is used; start the unit that owns it", dir, DefaultCgroups.Path(root))
		}
		return c, ""
	}
	return DefaultCgroups, ""
}

// find returns the directories that an earlier daemon made, below root, for the process
// of this name.
func (c Cgroups) find(root, name string) *group {
	if name == "" {
		return nil
	}
	g := &group{unified: isUnified(root)}
	for _, hierarchy := range hierarchies(root) {
		for _, parent := range c.all() {
			dir := filepath.Join(parent.Path(hierarchy), name)
			if _, err := os.Stat(dir); err == nil {
				g.dirs = append(g.dirs, dir)
			}
		}
	}
	return g
}

// hierarchies returns the directories at which hierarchies are mounted.
func hierarchies(root string) []string {
	if isUnified(root) {
		return []string{root}
	}
	dirs, _ := filepath.Glob(filepath.Join(root, "*")) // the pattern is valid
	return dirs
}

func isUnified(root string) bool {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return err == nil
}

// setting is a control file and its value.
type setting struct {
	file, value string
	optional    bool // not all kernels have the file
}

func v1Limits(c Cgroup) map[string][]setting {
	return map[string][]setting{
		"memory": {
			{file: "memory.limit_in_bytes", value: strconv.FormatInt(c.MemBytes, 10)},
			{file: "memory.memsw.limit_in_bytes", value: strconv.FormatInt(c.MemBytes, 10), optional: true},
		},
		"pids": {{file: "pids.max", value: strconv.Itoa(c.Tasks)}},
		"cpu": {
			{file: "cpu.cfs_period_us", value: strconv.Itoa(cpuPeriod)},
			{file: "cpu.cfs_quota_us", value: quota(c)},
			v1Weight(c.CPUs),
		},
	}
}

func v2Limits(c Cgroup) []setting {
	return []setting{
		{file: "memory.max", value: strconv.FormatInt(c.MemBytes, 10)},
		// v2 has no limit of memory and swap together: with any swap, a process would
		// exceed memory.max by that much, and the kernel would write the guest's memory,
		// a file in a tmpfs, to the disk instead of ending a VMM that uses too much.
		{file: "memory.swap.max", value: "0", optional: true},
		{file: "memory.oom.group", value: "1"},
		{file: "pids.max", value: strconv.Itoa(c.Tasks)},
		{file: "cpu.max", value: quota(c) + " " + strconv.Itoa(cpuPeriod)},
		v2Weight(c.CPUs),
	}
}

// v1Weight gives a group the CPU share of so many processes without a group. The
// default share is that of one process.
func v1Weight(processes float64) setting {
	return setting{file: "cpu.shares", value: strconv.Itoa(int(1024 * processes))}
}

func v2Weight(processes float64) setting {
	const most = 10_000
	return setting{file: "cpu.weight", value: strconv.Itoa(min(int(100*processes), most))}
}

func quota(c Cgroup) string { return strconv.Itoa(int(c.CPUs * cpuPeriod)) }

// make makes one directory with its limits, in the hierarchy that is mounted at root.
// On error no directory is left.
func (g *group) make(root string, parent Cgroups, name string, limits []setting) error {
	if err := g.prepare(root, parent); err != nil {
		return err
	}
	dir := filepath.Join(parent.Path(root), name)
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

// prepare makes the parent, if it is hatchd's, and enables controllers for its
// children. Of a unit's cgroup, systemd has enabled those of the parent, and
// CPUWeight= is its share of the CPUs.
func (g *group) prepare(root string, parent Cgroups) error {
	dir := parent.Path(root)
	enable := []string{dir}
	if parent == DefaultCgroups {
		if err := mkdir(dir); err != nil {
			return err
		}
		enable = []string{root, dir}
	}
	if g.unified {
		for _, at := range enable {
			if err := enableControllers(at); err != nil {
				return err
			}
		}
	}
	if parent == DefaultCgroups {
		return setWeight(dir)
	}
	return nil
}

// enableControllers enables, for the children of dir, the controllers of limits, and
// that of I/O where dir has it. hatchd sets no limit of I/O: the controller counts it
// for each VM, and the operator can set limits.
func enableControllers(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	if missing := MissingControllers(string(text)); len(missing) > 0 {
		return fmt.Errorf("%s does not have the controller %s", dir, missing[0])
	}
	wanted := "+" + strings.Join(controllers, " +")
	if slices.Contains(strings.Fields(string(text)), "io") {
		wanted += " +io"
	}
	return set(dir, setting{file: "cgroup.subtree_control", value: wanted})
}

// controllers are those that limits need.
var controllers = []string{"memory", "pids", "cpu"}

// MissingControllers returns the controllers that limits need and that are not in
// text, the content of a cgroup.controllers file of v2.
func MissingControllers(text string) (missing []string) {
	has := strings.Fields(text)
	for _, controller := range controllers {
		if !slices.Contains(has, controller) {
			missing = append(missing, controller)
		}
	}
	return missing
}

// setWeight gives all our groups together the CPU share of all processors, if the
// directory has a CPU controller.
func setWeight(parent string) error {
	all := float64(runtime.NumCPU())
	for _, s := range []setting{v1Weight(all), v2Weight(all)} {
		s.optional = true
		if err := set(parent, s); err != nil {
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

// set writes an existing control file.
func set(dir string, s setting) error {
	f, err := os.OpenFile(filepath.Join(dir, s.file), os.O_WRONLY, 0)
	if s.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.value)
	return errors.Join(err, f.Close())
}

// enter moves the calling thread into the group, so that its children start there.
// A thread moves itself at once; to move another process takes the kernel some
// 10 ms. This is for v1: v2 moves whole processes only.
func (g *group) enter() error {
	if g == nil || g.unified {
		return nil
	}
	var failed []error
	for _, dir := range g.dirs {
		failed = append(failed, set(dir, setting{file: "tasks", value: "0"}))
	}
	return errors.Join(failed...)
}

// openUnified opens the directory in the unified hierarchy, in which clone can
// start a process; nil when there is none.
func (g *group) openUnified() (*os.File, error) {
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

// remove deletes the directories of an ended process. The kernel may need a moment
// after the exit to see them empty, and has no event for it.
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

// Members lists the processes in the cgroup of this name; a process is in it before
// it executes its program. Without cgroups there are none. The daemon, whose thread
// is in it for a moment, is left out, and so are threads of the kernel: KVM attaches
// one to the cgroup of each VMM.
func (c Cgroups) Members(name string) (pids []int, err error) {
	g := c.find(cgroupRoot, name)
	if g == nil {
		return nil, nil
	}
	for _, dir := range g.dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the processes of a cgroup: %w", err)
		}
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && pid != os.Getpid() && !slices.Contains(pids, pid) && !isKernelThread(pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

func isKernelThread(pid int) bool {
	text, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return false // it has just ended, and the caller looks again
	}
	stat, err := parseStat(text)
	return err == nil && stat.kernel
}

// Forget removes the cgroup of this name, which must be empty.
func (c Cgroups) Forget(name string) { c.find(cgroupRoot, name).remove() }

// Sweep removes our cgroups whose process ended while no daemon ran, and the parent
// that hatchd makes itself. The kernel refuses to remove those in use.
func (c Cgroups) Sweep() error { return c.sweep(cgroupRoot) }

func (c Cgroups) sweep(root string) error {
	for _, hierarchy := range hierarchies(root) {
		for _, parent := range c.all() {
			pattern := "vm_*" // the parent may have other children
			if parent == DefaultCgroups {
				pattern = "*"
			}
			dirs, err := filepath.Glob(filepath.Join(parent.Path(hierarchy), pattern))
			if err != nil {
				return fmt.Errorf("cannot look for cgroups: %w", err)
			}
			for _, dir := range dirs {
				if st, err := os.Stat(dir); err == nil && st.IsDir() {
					_ = os.Remove(dir)
				}
			}
		}
		_ = os.Remove(DefaultCgroups.Path(hierarchy))
	}
	return nil
}
