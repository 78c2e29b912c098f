//go:build system

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// traces are what VMs make on the host, a line each: processes, interfaces, rules,
// files.
type traces []string

// countedSet begins a set by which the rules count packets or connections.
var countedSet = regexp.MustCompile(`^\tset (flows|dhcp_rate) \{`)

// traces lists the traces of now. In the sandbox's process namespace every VMM is
// the tests'.
func (w *world) traces(t *testing.T) traces {
	t.Helper()
	var found traces
	for _, p := range vmms(t) {
		found = append(found, fmt.Sprintf("process %d: %s", p.pid, p.exe))
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		found = append(found, "interface "+l.Name)
	}
	rules, err := exec.Command("nft", "-s", "list", "ruleset").Output()
	if err != nil {
		t.Fatalf("cannot list the rules: %v", err)
	}
	counted := false
	for line := range strings.Lines(string(rules)) {
		if counted = counted && line != "\t}\n" || countedSet.MatchString(line); counted {
			continue // packets fill it, also those of VMs that stay
		}
		found = append(found, "rule "+strings.TrimSpace(line))
	}
	fdb, err := exec.Command("bridge", "fdb", "show").Output()
	if err != nil {
		t.Fatalf("cannot list the bridge's forwarding table: %v", err)
	}
	for line := range strings.Lines(string(fdb)) {
		if strings.Contains(line, "02:fc:") {
			found = append(found, "bridge address "+strings.TrimSpace(line))
		}
	}
	for _, port := range listening(t) {
		found = append(found, fmt.Sprintf("listening port %d", port))
	}
	dirs, err := os.ReadDir(w.data("vms"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, d := range dirs {
		found = append(found, "directory "+d.Name())
	}
	for _, kind := range []string{"memory", "snapshots"} {
		entries, err := os.ReadDir(w.data(kind))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, kind+" "+e.Name())
		}
	}
	found = append(found, w.cgroups(t)...)
	found = append(found, w.jails(t)...)
	slices.Sort(found)
	return found
}

var vmID = regexp.MustCompile(`/vm_[a-z0-9]{12}$`)

// cgroups lists the VMs' cgroups. The cgroup file system is the host's: a cgroup of
// another hatchd has the name of a VM that ours has neither logged nor an event of.
func (w *world) cgroups(t *testing.T) []string {
	t.Helper()
	logged, err := os.ReadFile(w.daemon.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/hatch/vm_*", "/sys/fs/cgroup/hatch/vm_*"} {
		dirs, _ := filepath.Glob(pattern) // the pattern is well formed
		for _, dir := range dirs {
			id := filepath.Base(dir)
			if vmID.MatchString(dir) && (bytes.Contains(logged, []byte(id)) || w.hasEvent(t, id)) {
				found = append(found, "cgroup "+dir)
			}
		}
	}
	return found
}

// hasEvent reports whether hatchd runs and has an event of a VM.
func (w *world) hasEvent(t *testing.T, id string) bool {
	t.Helper()
	for _, err := range w.client.ListEvents(t.Context(), client.EventOptions{VM: id}) {
		return err == nil
	}
	return false
}

// jails lists the VMMs' root directories, and mounts in VMs' directories.
func (w *world) jails(t *testing.T) (found []string) {
	t.Helper()
	roots, _ := filepath.Glob(w.data("vms", "*", "jail")) // the pattern is well formed
	for _, root := range roots {
		found = append(found, "jail "+root)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, w.data("vms")) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	return found
}

// requireTraces checks that the host has the traces that it had before, after a
// moment for removals in the background.
func (w *world) requireTraces(t *testing.T, before traces) {
	t.Helper()
	var more, gone []string
	err := sandbox.Poll(normalReply, func() (bool, error) {
		now := w.traces(t)
		more, gone = minus(now, before), lost(before, now)
		return len(more) == 0 && len(gone) == 0, nil
	})
	if err != nil {
		t.Errorf("the host is not as it was before:\nleft behind: %s\ngone: %s",
			strings.Join(more, "\n             "), strings.Join(gone, "\n      "))
	}
}

// lost returns the traces that are gone, without those of removals under way.
func lost(before, now traces) []string {
	return slices.DeleteFunc(minus(before, now), func(line string) bool { return strings.Contains(line, ".gone.") })
}

// minus returns the lines of a that b does not have.
func minus(a, b traces) []string {
	rest := slices.Clone(b)
	var only []string
	for _, line := range a {
		if i := slices.Index(rest, line); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
			continue
		}
		only = append(only, line)
	}
	return only
}

// process is one VMM.
type process struct {
	pid     int
	exe     string
	command string // its arguments, with spaces between
	uid     int
}

// isVMM reports whether a program is a VMM: QEMU, Firecracker as its jailer starts
// it, or the jailer before that.
func isVMM(exe string) bool {
	name := filepath.Base(exe)
	return strings.HasPrefix(name, "qemu-system") || name == "firecracker" || name == "jailer"
}

// vmms lists the VMM processes.
func vmms(t *testing.T) []process {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || !isVMM(exe) {
			continue // a zombie has no exe
		}
		p := process{pid: pid, exe: exe}
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		p.command = strings.ReplaceAll(string(args), "\x00", " ")
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		_, after, _ := strings.Cut(string(status), "\nUid:\t")
		_, _ = fmt.Sscan(after, &p.uid) // stays 0, which no VMM may have
		found = append(found, p)
	}
	return found
}

// runs reports whether the process runs the VM.
func (p process) runs(v api.VM) bool {
	jailed := strings.ReplaceAll(v.ID, "_", "-") // an id that Firecracker's jailer accepts
	return strings.Contains(p.command, v.ID) || strings.Contains(p.command, jailed)
}

// vmm returns the process that runs the VM.
func vmm(t *testing.T, v api.VM) process {
	t.Helper()
	for _, p := range vmms(t) {
		if p.runs(v) {
			return p
		}
	}
	t.Fatalf("no process runs %s; the VMMs are %+v", v.ID, vmms(t))
	return process{}
}

// kill kills the VMM, as a crash would.
func (p process) kill(t *testing.T) {
	t.Helper()
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		t.Fatalf("cannot kill process %d: %v", p.pid, err)
	}
}

// rollup returns a line of the process's smaps_rollup, in KiB.
func (p process) rollup(t *testing.T, kind string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, kind); ok {
			var kib int
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return kib
		}
	}
	t.Fatalf("there is no %s in %s", kind, text)
	return 0
}

// awaitExit waits until the process has ended.
func (p process) awaitExit(t *testing.T, limit time.Duration) {
	t.Helper()
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatalf("cannot watch process %d: %v", p.pid, err)
	}
	defer unix.Close(fd)
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if err != nil || ready == 0 {
		t.Fatalf("process %d has not ended after %s (%v)", p.pid, limit, err)
	}
}

// listening returns the TCP ports with a listener.
func listening(t *testing.T) []int {
	t.Helper()
	var ports []int
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(file)
		if os.IsNotExist(err) {
			continue // no IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		scanner := bufio.NewScanner(f)
		for scanner.Scan() {
			fields := strings.Fields(scanner.Text())
			if len(fields) < 4 || fields[3] != "0A" {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			if port, err := strconv.ParseInt(hex, 16, 32); err == nil {
				ports = append(ports, int(port))
			}
		}
		_ = f.Close()
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}
