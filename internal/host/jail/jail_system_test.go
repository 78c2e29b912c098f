//go:build linux && system

package jail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const testUser = 912345

// jailShell starts a shell script in the jail, with a pipe as its stdout.
func jailShell(t *testing.T, script string, change func(*Process)) (*Proc, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := Process{
		Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"},
		UID: testUser, GID: testUser, Stdout: w, OpenFiles: 64,
	}
	if change != nil {
		change(&p)
	}
	proc, err := Start(t.Context(), p)
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return proc, r
}

// awaitedStdin returns a stdin for a script that begins with "read x", and what lets the
// script go on: after Start, which sets the limits of a process that runs already.
func awaitedStdin(t *testing.T) (stdin *os.File, begin func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, func() {
		_ = r.Close()
		_ = w.Close()
	}
}

func awaitExit(t *testing.T, p *Proc) Status {
	t.Helper()
	select {
	case <-p.Exited():
		return p.Status()
	case <-time.After(20 * time.Second):
		t.Fatal("the process does not end")
		return Status{}
	}
}

func TestJailedProcessHasNothingItDoesNotNeed(t *testing.T) {
	stdin, begin := awaitedStdin(t)
	p, out := jailShell(t, `read x; id -u; id -g; id -G; umask; cat /proc/self/status; cat /proc/self/limits; ls /sys/class/net /proc/self/fd; `+
		`cut -d' ' -f6 /proc/self/stat; for n in net ipc uts; do readlink /proc/self/ns/$n; done; pwd; env`, func(p *Process) { p.Stdin = stdin })
	defer func() { _ = p.Close() }()
	begin()
	said, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if st := awaitExit(t, p); !st.Known || st.Code != 0 || st.Signal != 0 {
		t.Fatalf("status %+v", st)
	}
	user := strconv.Itoa(testUser)
	if want := strings.Repeat(user+"\n", 3) + "0077\n"; !strings.HasPrefix(string(said), want) {
		t.Errorf("user, groups and umask are not %q in:\n%s", want, said)
	}
	status := string(said)
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("%q is missing in:\n%s", want, status)
		}
	}
	if got := limitLine(status, "Max core file size"); !strings.HasPrefix(got, "0 ") {
		t.Errorf("core dumps are limited to %q", got)
	}
	if got := limitLine(status, "Max open files"); got != "64 64 files" {
		t.Errorf("open files are limited to %q", got)
	}
	for _, ns := range []string{"net", "ipc", "uts"} {
		if own, err := os.Readlink("/proc/self/ns/" + ns); err != nil || strings.Contains(status, own) {
			t.Errorf("the process shares the namespace %s (%v)", own, err)
		}
	}
	if !strings.Contains(status, "\n/\n") {
		t.Error("its working directory is not /")
	}
	if strings.Contains(status, "HOME=") {
		t.Error("it inherited the environment")
	}
}

func limitLine(limits, name string) string {
	for line := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.Join(strings.Fields(rest), " ")
		}
	}
	return ""
}

func TestTheDaemonKeepsItsPrivileges(t *testing.T) {
	before, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	p, _ := jailShell(t, "exit 0", nil)
	defer func() { _ = p.Close() }()
	awaitExit(t, p)
	after, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"CapBnd:", "CapEff:", "NoNewPrivs:", "Umask:"} {
		if a, b := statusLine(before, name), statusLine(after, name); a != b {
			t.Errorf("%s was %q and is %q", name, a, b)
		}
	}
}

func statusLine(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, name) {
			return line
		}
	}
	return "none"
}

func TestExitIsReported(t *testing.T) {
	for script, want := range map[string]Status{
		"exit 7":        {Known: true, Code: 7},
		"kill -TERM $$": {Known: true, Signal: syscall.SIGTERM},
	} {
		p, _ := jailShell(t, script, nil)
		got := awaitExit(t, p)
		got.At = time.Time{}
		if got != want {
			t.Errorf("%s: %+v, want %+v", script, got, want)
		}
		_ = p.Close()
	}
}

func TestKillReturnsWhenTheProcessIsGone(t *testing.T) {
	p, _ := jailShell(t, "trap '' TERM; while :; do read x; done", nil)
	defer func() { _ = p.Close() }()
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(procPath(p.Identity().PID, "stat")); err == nil {
		t.Error("the process is still there")
	}
	if st := awaitExit(t, p); st.Signal != syscall.SIGKILL {
		t.Errorf("status %+v", st)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("killing it again: %v", err)
	}
}

func TestOpenTakesOverAfterClose(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	first, _ := jailShell(t, "read x <&3; exit 5", func(p *Process) { p.Files = []*os.File{r} })
	_ = r.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := Open(first.Identity(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	_ = w.Close()
	if st := awaitExit(t, second); st.Code != 5 {
		t.Errorf("status %+v", st)
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	name := fmt.Sprintf("jailtest-%d-broken", os.Getpid())
	_, err := Start(t.Context(), Process{Path: "/no/such/program", UID: testUser, GID: testUser, OpenFiles: 64, Cgroup: &Cgroup{Name: name, MemBytes: 1 << 30, CPUs: 1, Tasks: 10}})
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
	if left := Cgroups("").find(cgroupRoot, name); len(left.dirs) != 0 {
		t.Errorf("left %v", left.dirs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Process{Path: "/bin/true"}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}

// The daemon's own descriptors may lack close-on-exec, such as those that it inherited.
func TestInheritedDescriptorsStayOut(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(secret, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	p, out := jailShell(t, "ls -l /proc/$$/fd", nil)
	defer func() { _ = p.Close() }()
	said, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	awaitExit(t, p)
	if !strings.Contains(string(said), "pipe:") || strings.Contains(string(said), secret) {
		t.Errorf("its descriptors are\n%s", said)
	}
}

func TestCgroupLimitsAndIsRemoved(t *testing.T) {
	group := &Cgroup{Name: fmt.Sprintf("jailtest-%d-limits", os.Getpid()), MemBytes: 32 << 20, CPUs: 1.5, Tasks: 20}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, _ := jailShell(t, "read x <&3", func(p *Process) { p.Cgroup, p.Files = group, []*os.File{r} })
	defer func() { _ = p.Close() }()
	_ = r.Close()
	if strings.Contains(p.Note(), "cgroup") {
		t.Fatalf("this host's cgroups cannot be used: %s", p.Note())
	}
	if len(group.Parent.find(cgroupRoot, group.Name).dirs) == 0 {
		t.Fatal("there is no cgroup")
	}
	want := []int{p.Identity().PID}
	for late := time.After(20 * time.Second); ; { // the thread that made it may not have ended yet
		members, err := group.Parent.Members(group.Name)
		if err == nil && slices.Equal(members, want) {
			break
		}
		select {
		case <-late:
			t.Fatalf("it holds %v, %v; want %v", members, err, want)
		case <-time.After(time.Millisecond):
		}
	}
	_ = w.Close()
	awaitExit(t, p)
	if left := group.Parent.find(cgroupRoot, group.Name); len(left.dirs) != 0 {
		t.Errorf("left %v", left.dirs)
	}
}

func TestProcessIsBornInItsCgroup(t *testing.T) {
	requireBornIn(t, "", DefaultCgroups) // it also enables the controllers at the root
	unit := Cgroups(fmt.Sprintf("/jailtest-%d.service", os.Getpid()))
	requireBornIn(t, unit, DefaultCgroups) // it does not exist
	for _, dir := range unitDirs(unit) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Errorf("not empty: %v", err)
			}
		})
	}
	requireBornIn(t, unit, unit)
}

// unitDirs returns the directories that systemd would make for a unit.
func unitDirs(unit Cgroups) (dirs []string) {
	if isUnified(cgroupRoot) {
		return []string{unit.Path(cgroupRoot)}
	}
	for controller := range v1Limits(Cgroup{}) {
		dirs = append(dirs, unit.Path(filepath.Join(cgroupRoot, controller)))
	}
	return dirs
}

// requireBornIn starts a process that is to be in parent, and checks that it is in want
// from the start.
func requireBornIn(t *testing.T, parent, want Cgroups) {
	t.Helper()
	group := &Cgroup{Parent: parent, Name: fmt.Sprintf("jailtest-%d-born", os.Getpid()), MemBytes: 32 << 20, CPUs: 1, Tasks: 20}
	p, out := jailShell(t, "exec cat /proc/self/cgroup", func(p *Process) { p.Cgroup = group })
	defer func() { _ = p.Close() }()
	said, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	awaitExit(t, p)
	if got, wanted := strings.Count(string(said), ":"+string(want)+"/"+group.Name+"\n"), len(unitDirs(want)); got != wanted {
		t.Errorf("at first it is in %d directories of its group, want %d:\n%s", got, wanted, said)
	}
	if noted := strings.Contains(p.Note(), "does not exist"); noted != (want == DefaultCgroups && parent != "") {
		t.Errorf("the note is %q", p.Note())
	}
	if own, err := os.ReadFile("/proc/self/cgroup"); err != nil || strings.Contains(string(own), group.Name) {
		t.Errorf("the daemon is in it, too: %v\n%s", err, own)
	}
}

// TestProcessIsBornInTheUnifiedHierarchy needs no controllers there: it works also
// where v1 has them all.
func TestProcessIsBornInTheUnifiedHierarchy(t *testing.T) {
	root := cgroupRoot
	if !isUnified(root) {
		root = filepath.Join(cgroupRoot, "unified")
	}
	if !isUnified(root) {
		root = t.TempDir()
		if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	}
	dir := filepath.Join(root, fmt.Sprintf("jailtest-%d-cradle", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g := &group{dirs: []string{dir}, unified: true}
	t.Cleanup(g.remove)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	child := spawn(Process{Path: "/bin/cat", Args: []string{"/proc/self/cgroup"}, UID: testUser, GID: testUser, Stdout: w}, g, w)
	_ = w.Close()
	if child.err != nil || child.unlimited != nil {
		t.Fatal(child.err, child.unlimited)
	}
	defer func() { _ = unix.Close(child.pidfd) }()
	said, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(said), "0::/"+filepath.Base(dir)+"\n") {
		t.Errorf("it is in %q, %v", said, err)
	}
	if _, err := unix.Wait4(child.pid, nil, 0, nil); err != nil {
		t.Error(err)
	}
}

// TestProcessThatCannotBeBornInItsCgroupRuns has a group without its directory, and
// one that clone refuses, as it does all groups on a kernel before 5.7 and behind a
// filter of system calls.
func TestProcessThatCannotBeBornInItsCgroupRuns(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	for name, dir := range map[string]string{"gone": filepath.Join(t.TempDir(), "gone"), "refused": t.TempDir()} {
		p := Process{Path: "/bin/sh", Args: []string{"-c", "exit 7"}, UID: testUser, GID: testUser}
		child := spawn(p, &group{dirs: []string{dir}, unified: true}, null)
		if child.err != nil {
			t.Fatalf("%s: it does not start: %v", name, child.err)
		}
		if child.unlimited == nil {
			t.Errorf("%s: no note that it has no limits", name)
		}
		proc, err := adopted(child.pid, child.pidfd, nil)
		if err != nil {
			t.Fatal(err)
		}
		if st := awaitExit(t, proc); st.Code != 7 {
			t.Errorf("%s: status %+v", name, st)
		}
		if err := proc.Close(); err != nil {
			t.Error(err)
		}
		p.Path = "/no/such/program"
		if child := spawn(p, &group{dirs: []string{dir}, unified: true}, null); !errors.Is(child.err, os.ErrNotExist) {
			t.Errorf("%s: without a program it says %v", name, child.err)
		}
	}
}

func TestGoingOverTheMemoryLimitIsSaid(t *testing.T) {
	group := &Cgroup{Name: fmt.Sprintf("jailtest-%d-memory", os.Getpid()), MemBytes: 16 << 20, CPUs: 1, Tasks: 20}
	p, _ := jailShell(t, "exec tail /dev/zero", func(p *Process) { p.Cgroup = group })
	defer func() { _ = p.Close() }()
	if st := awaitExit(t, p); st.Signal != syscall.SIGKILL || !st.OverMem {
		t.Errorf("status %+v", st)
	}
}

func BenchmarkStart(b *testing.B) {
	program, err := filepath.EvalSymlinks("/bin/true")
	if err != nil {
		b.Fatal(err)
	}
	for name, root := range map[string]*Root{"on the host": nil, "in a root directory": {Programs: Programs(program)}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p, err := Start(b.Context(), Process{Path: program, UID: testUser, GID: testUser, OpenFiles: 64, Root: root, OwnPIDs: root != nil, Filtered: root != nil})
				if err != nil {
					b.Fatal(err)
				}
				<-p.Exited()
				_ = p.Close()
			}
		})
	}
}
