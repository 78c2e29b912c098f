//go:build linux

package jail

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

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
		if p, err := Open(id, ""); !errors.Is(err, ErrGone) {
			t.Errorf("%s was opened: %v, %v", name, p, err)
		}
	}
}

// A process that is not our child is watched all the same: here one that the
// shell leaves behind.
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
	p, err := Open(id, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	select {
	case <-p.Exited():
		t.Fatal("it is said to be gone while it lives")
	default:
	}
	_ = hold.Close()
	select {
	case <-p.Exited():
	case <-time.After(10 * time.Second):
		t.Fatal("its end was not noticed")
	}
	if st := p.Status(); st.Known || st.At.IsZero() {
		t.Errorf("status %+v; nobody can know it", st)
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
		t.Errorf("found %v, %v though no arguments are ours", found, err)
	}
}

// hider tells the test binary to take its arguments out of sight.
const hider = "HATCH_TEST_HIDE_ARGUMENTS"

func TestRunnersSeesAProcessThatHidesItsArguments(t *testing.T) {
	if os.Getenv(hider) != "" {
		hideArguments(t)
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
	if line, err := os.ReadFile(procPath(cmd.Process.Pid, "cmdline")); err != nil || len(line) > 0 {
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

// hideArguments unmaps the page with the program's arguments, tells so on stdout,
// and waits to be killed. From there on nothing may look at them or at the environment.
func hideArguments(t *testing.T) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	const argStart = 48 - 3 // the name in parentheses is the second field
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	at, err := strconv.ParseUint(fields[argStart], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	page := uint64(os.Getpagesize())
	if _, _, errno := unix.RawSyscall(unix.SYS_MUNMAP, uintptr(at&^(page-1)), uintptr(page), 0); errno != 0 {
		t.Fatal(errno)
	}
	_, _ = unix.Write(1, []byte("."))
	for {
		_ = unix.Pause()
	}
}

func TestStatusInWords(t *testing.T) {
	for want, st := range map[string]Status{
		"exit status 1":      {Known: true, Code: 1},
		"killed by signal 9": {Known: true, Signal: 9},
		"killed by signal 9 (over its memory limit)":    {Known: true, Signal: 9, OverMem: true},
		"ended while it was not a child of this daemon": {},
	} {
		if got := st.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A host without writable cgroups gets a note, not an error.
func TestCgroupsThatCannotBeWrittenAreNoted(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := &group{}
	if err := g.makeUnified(root, Cgroup{Name: "vm_a", MemBytes: 1, CPUs: 1, Tasks: 1}); err == nil {
		t.Error("limits were set where no control files are")
	}
	g.remove()
	if len(g.dirs) != 0 {
		t.Errorf("kept %v without limits", g.dirs)
	}
}

func TestLimitsInTheKernelsWords(t *testing.T) {
	c := Cgroup{Name: "vm_a", MemBytes: 64 << 20, CPUs: 1.5, Tasks: 130}
	want := []setting{{"memory.max", "67108864"}, {"memory.oom.group", "1"}, {"pids.max", "130"}, {"cpu.max", "150000 100000"}, {"cpu.weight", "150"}}
	if got := v2Limits(c); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	want = []setting{{"cpu.cfs_period_us", "100000"}, {"cpu.cfs_quota_us", "150000"}, {"cpu.shares", "1536"}}
	if got := v1Limits(c)["cpu"]; !slices.Equal(got, want) {
		t.Errorf("v1: got %v, want %v", got, want)
	}
	if got := v2Weight(4096); got != (setting{"cpu.weight", "10000"}) {
		t.Errorf("the most is %v", got)
	}
	if n := oomKills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"); n != 2 {
		t.Errorf("%d kills, want 2", n)
	}
}
