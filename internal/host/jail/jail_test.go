//go:build linux

package jail

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestIdentityIsOfOneProcessOnly(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Identity){
		"another pid":        func(id *Identity) { id.PID = 1 },
		"another start time": func(id *Identity) { id.StartTime++ },
		"another boot":       func(id *Identity) { id.BootID = "b" },
		"another program":    func(id *Identity) { id.Exe = "/bin/true" },
		"no such pid":        func(id *Identity) { id.PID = 1 << 22 },
	} {
		id := self
		change(&id)
		if p, err := Open(id, "", ""); !errors.Is(err, ErrGone) {
			t.Errorf("%s was opened: %v, %v", name, p, err)
		}
	}
}

// TestOpenWatchesAProcessThatIsNoChild opens a process that a shell left behind.
func TestOpenWatchesAProcessThatIsNoChild(t *testing.T) {
	end, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = end.Close() }()
	cmd := exec.Command("/bin/sh", "-c", "(read line; exit 3) <&3 >/dev/null 2>&1 & echo $!")
	cmd.ExtraFiles = []*os.File{end}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	id, err := Identify(atoi(t, out))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(id, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	select {
	case <-p.Exited():
		t.Fatal("Exited is closed while it lives")
	default:
	}
	_ = hold.Close()
	select {
	case <-p.Exited():
	case <-time.After(10 * time.Second):
		t.Fatal("its end was not noticed")
	}
	if st := p.Status(); st.Known || st.At.IsZero() {
		t.Errorf("status %+v of a process that is no child", st)
	}
}

func atoi(t *testing.T, out []byte) int {
	t.Helper()
	n := 0
	for _, c := range out {
		if c >= '0' && c <= '9' {
			n = n*10 + int(c-'0')
		}
	}
	return n
}

func TestFindSeesOnlyTheProgramAndArguments(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	found, err := Find(self, func([]string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for _, r := range found {
		ours = ours || r.Identity.PID == os.Getpid()
	}
	if !ours {
		t.Error("this very process was not found")
	}
	if found, err := Find(self, func([]string) bool { return false }); err != nil || len(found) != 0 {
		t.Errorf("found %v, %v although accept refuses all", found, err)
	}
}

// hider tells the test binary to hide its arguments.
const hider = "HATCH_TEST_HIDE_ARGUMENTS"

func TestRunnersSeesAProcessThatHidesItsArguments(t *testing.T) {
	if os.Getenv(hider) != "" {
		hideArguments()
		return
	}
	exe, err := exeOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^TestRunnersSeesAProcessThatHidesItsArguments$")
	cmd.Env = append(os.Environ(), hider+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if line, err := os.ReadFile(procPath(cmd.Process.Pid, "cmdline")); err != nil || len(bytes.Trim(line, "\x00")) > 0 {
		t.Fatalf("its arguments are %q, %v", line, err)
	}
	found, err := Runners(exe)
	if err != nil || !slices.ContainsFunc(found, func(id Identity) bool { return id.PID == cmd.Process.Pid }) {
		t.Errorf("found %v, %v without process %d", found, err, cmd.Process.Pid)
	}
	if found, err := Runners("/no/such/program"); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v that run another program", found, err)
	}
}

// hideArguments overwrites the program's arguments, which the kernel reads from its
// memory when /proc/PID/cmdline is read. It reports it on stdout and waits to be killed.
func hideArguments() {
	for _, arg := range os.Args {
		clear(unsafe.Slice(unsafe.StringData(arg), len(arg)))
	}
	_, _ = os.Stdout.WriteString(".")
	for {
		_ = unix.Pause()
	}
}

func TestStatusInWords(t *testing.T) {
	for want, st := range map[string]Status{
		"exit status 1":      {Known: true, Code: 1},
		"killed by signal 9": {Known: true, Signal: 9},
		"killed by signal 7 (the host had no memory left for the guest's)": {Known: true, Signal: 7},
		"killed by signal 9 (over its memory limit)":                       {Known: true, Signal: 9, OverMem: true},
		"ended while it was not a child of this daemon":                    {},
	} {
		if got := st.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// hierarchy makes a directory that looks like the unified hierarchy, with these
// cgroups. Their control files are plain ones: a cgroup that is made has none.
func hierarchy(t *testing.T, controllers string, cgroups ...Cgroups) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, c := range append(cgroups, "/") {
		dir := c.Path(root)
		err := errors.Join(os.MkdirAll(dir, 0o755),
			os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(controllers), 0o600),
			os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), nil, 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCgroupsThatCannotBeWrittenAreNoted(t *testing.T) {
	for controllers, want := range map[string]string{"cpu memory pids\n": "no such file", "cpu io memory\n": "does not have the controller pids"} {
		root := hierarchy(t, controllers, DefaultCgroups)
		g := &group{unified: true}
		err := g.make(root, DefaultCgroups, "vm_a", v2Limits(Cgroup{MemBytes: 1, CPUs: 1, Tasks: 1}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("limits without control files: %v, want %q", err, want)
		}
		if left, err := os.ReadDir(DefaultCgroups.Path(root)); err != nil || len(left) != 2 || len(g.dirs) != 0 {
			t.Errorf("left %v, %v and kept %v without limits", left, err, g.dirs)
		}
	}
}

// A unit's cgroup is systemd's: hatchd enables controllers there only, makes no cgroup
// of a unit that is not started, and does not change its share.
func TestCgroupsLieInThatOfAUnit(t *testing.T) {
	root := hierarchy(t, "cpuset cpu io memory pids\n", UnitCgroups)
	weight := filepath.Join(UnitCgroups.Path(root), "cpu.weight")
	if err := os.WriteFile(weight, []byte("1000"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &group{unified: true}
	if err := g.make(root, UnitCgroups, "vm_a", nil); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{UnitCgroups.Path(root): "+memory +pids +cpu +io", root: ""} {
		if got, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); err != nil || string(got) != want {
			t.Errorf("%s enables %q, %v; want %q", dir, got, err, want)
		}
	}
	if got, err := os.ReadFile(weight); err != nil || string(got) != "1000" {
		t.Errorf("the unit's share is %q, %v", got, err)
	}
	if parent, missing := UnitCgroups.usable(root); parent != UnitCgroups || missing != "" {
		t.Errorf("the unit's cgroup is not used: %s, %q", parent, missing)
	}
	if parent, missing := Cgroups("/system.slice/other.service").usable(root); parent != DefaultCgroups || !strings.Contains(missing, "other.service does not exist") {
		t.Errorf("without its unit: %s, %q", parent, missing)
	}
	if parent, missing := Cgroups("").usable(root); parent != DefaultCgroups || missing != "" {
		t.Errorf("hatchd's own: %s, %q", parent, missing)
	}
}

// A VM's cgroup is found and removed whichever hatchd made it: one of before the unit,
// one of the unit, or one started by hand.
func TestCgroupsOfEarlierDaemonsAreFound(t *testing.T) {
	const own Cgroups = "/vms"
	for _, from := range []Cgroups{DefaultCgroups, UnitCgroups, own} {
		for _, to := range []Cgroups{"", UnitCgroups, own} {
			if from == own && to != own {
				continue
			}
			root := hierarchy(t, "")
			dir, other := filepath.Join(from.Path(root), "vm_a"), filepath.Join(from.Path(root), "other")
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(other, 0o755)); err != nil {
				t.Fatal(err)
			}
			if g := to.find(root, "vm_a"); !slices.Equal(g.dirs, []string{dir}) || !g.unified {
				t.Errorf("made in %s, a daemon of %q finds %+v", from, to, g)
			}
			if g := to.find(root, "vm_b"); len(g.dirs) != 0 {
				t.Errorf("a VM without a cgroup has %v", g.dirs)
			}
			if err := to.sweep(root); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("made in %s, a daemon of %q does not remove it: %v", from, to, err)
			}
			if _, err := os.Stat(other); from != DefaultCgroups && err != nil {
				t.Errorf("in %s, a daemon of %q removes another program's: %v", from, to, err)
			}
		}
	}
}

func TestLimitsAreWrittenAsTheKernelReadsThem(t *testing.T) {
	c := Cgroup{Name: "vm_a", MemBytes: 64 << 20, CPUs: 1.5, Tasks: 130}
	want := []setting{
		{"memory.max", "67108864", false},
		{"memory.swap.max", "0", true},
		{"memory.oom.group", "1", false},
		{"pids.max", "130", false},
		{"cpu.max", "150000 100000", false},
		{"cpu.weight", "150", false},
	}
	if got := v2Limits(c); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	want = []setting{{"memory.limit_in_bytes", "67108864", false}, {"memory.memsw.limit_in_bytes", "67108864", true}}
	if got := v1Limits(c)["memory"]; !slices.Equal(got, want) {
		t.Errorf("v1: got %v, want %v", got, want)
	}
	want = []setting{{"cpu.cfs_period_us", "100000", false}, {"cpu.cfs_quota_us", "150000", false}, {"cpu.shares", "1536", false}}
	if got := v1Limits(c)["cpu"]; !slices.Equal(got, want) {
		t.Errorf("v1: got %v, want %v", got, want)
	}
	if got := v2Weight(4096); got != (setting{file: "cpu.weight", value: "10000"}) {
		t.Errorf("the most is %v", got)
	}
	if n := oomKills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"); n != 2 {
		t.Errorf("%d kills, want 2", n)
	}
}
