//go:build system

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/store/storetest/postgres"
	"github.com/hatchvm/hatch/test/sandbox"
)

// fewDescriptors is a limit of hatchd's file descriptors with which a few VMs run.
const fewDescriptors = 480

// testFewDescriptors holds as many connections to hatchd as a client can. It is refused
// at some point; VMs are stopped and deleted all the same.
func testFewDescriptors(t *testing.T, w *world) {
	program := w.daemon.Program
	limited := filepath.Join(t.TempDir(), "hatchd")
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %s\n", fewDescriptors, program)
	if err := os.WriteFile(limited, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	w.daemon.Program = limited
	t.Cleanup(func() { w.daemon.Program = program; w.restart(t) })
	w.restart(t)
	made := [3]api.VM{}
	for i := range made {
		made[i] = w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	}
	release := holdConnections(t, fewDescriptors, apiPort, made[0].SSHPort, made[1].SSHPort, made[2].SSHPort)
	w.hatch(t, "stop", made[0].ID)
	w.hatch(t, "rm", made[0].ID)
	awaitPart(t, w, "descriptors", "ok")

	err := sandbox.Poll(noticed, func() (bool, error) {
		setDescriptors(t, w.daemon.PID(), w.lowestFree(t)*4/3-1) // fewer and fewer: hatchd closes connections that say nothing
		return partHealth(t, w, "descriptors") == "degraded", nil
	})
	if err != nil {
		t.Errorf("the health says nothing of descriptors that are used up: %v", err)
	}
	w.stop(t, made[1].ID)
	w.delete(t, made[1].ID)
	release()
	setDescriptors(t, w.daemon.PID(), fewDescriptors)
	awaitPart(t, w, "descriptors", "ok")
	if got := w.inside(t, made[2], "echo well"); got != "well" {
		t.Errorf("a guest says %q", got)
	}
	w.hatch(t, "rm", "-f", made[2].ID)
}

// restart ends hatchd and starts it with more settings.
func (w *world) restart(t *testing.T, env ...string) {
	t.Helper()
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, env...)
}

// lowestFree returns the descriptor that hatchd would get next.
func (w *world) lowestFree(t *testing.T) (fd uint64) {
	t.Helper()
	for {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", w.daemon.PID(), fd)); err != nil {
			return fd
		}
		fd++
	}
}

// setDescriptors changes the limit of hatchd's file descriptors, up to fewDescriptors.
func setDescriptors(t *testing.T, pid int, most uint64) {
	t.Helper()
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: fewDescriptors}, nil); err != nil {
		t.Fatal(err)
	}
}

// holdConnections opens connections to each port, as another host would, and leaves
// open those that hatchd does not close.
func holdConnections(t *testing.T, each int, ports ...int) (release func()) {
	t.Helper()
	var held []net.Conn
	for _, port := range ports {
		for range each {
			conn, err := net.Dial("tcp", net.JoinHostPort(uplinkAddr, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, conn)
		}
	}
	release = func() {
		for _, conn := range held {
			_ = conn.Close()
		}
	}
	t.Cleanup(release)
	return release
}

func partHealth(t *testing.T, w *world, name string) string {
	t.Helper()
	health, err := w.client.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range health.Parts {
		if part.Name == name {
			return part.Status
		}
	}
	return "missing"
}

func awaitPart(t *testing.T, w *world, name, want string) {
	t.Helper()
	if err := sandbox.Poll(noticed, func() (bool, error) { return partHealth(t, w, name) == want, nil }); err != nil {
		t.Errorf("the health of %s is %s, want %s", name, partHealth(t, w, name), want)
	}
}

// How much memory a guest takes, and how much there is for it, in MiB.
const (
	greedyMem    = 256
	takenByGuest = 180
	leftForGuest = 16
)

// fillMemory lets a guest take memory, and waits for nothing: its VMM may end.
func (w *world) fillMemory(t *testing.T, v api.VM) {
	t.Helper()
	line := fmt.Sprintf("mkdir -p /m && mount -t tmpfs -o size=%dm m /m && dd if=/dev/zero of=/m/x bs=1M count=%d", takenByGuest, takenByGuest)
	if _, err := w.client.StartExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: line}}); err != nil {
		t.Fatal(err)
	}
}

// awaitError waits until a VM is in state error, and checks the reason.
func (w *world) awaitError(t *testing.T, id, reason string) {
	t.Helper()
	v := w.await(t, id, "error", noticed)
	if !strings.Contains(v.StateReason, reason) {
		t.Errorf("the reason is %q, want one with %q", v.StateReason, reason)
	}
}

// testScarceMemory limits the cgroup of all VMs, and lets a guest take more memory than
// is left. The kernel ends that VM and no other; VMs are stopped and deleted and hatchd
// starts.
func testScarceMemory(t *testing.T, w *world) {
	g := newVMGroup(t)
	w.restart(t, "HATCH_CGROUP="+g.path)
	t.Cleanup(func() { w.restart(t) })
	body := minimal()
	body.MemMiB = new(greedyMem)
	greedy := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	idle := [2]api.VM{}
	for i := range idle {
		idle[i] = w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	}
	g.reclaim()
	g.limitMemory(t, g.usedMemory(t)+leftForGuest<<20)
	w.fillMemory(t, greedy)
	w.awaitError(t, greedy.ID, "memory")
	w.stop(t, idle[0].ID)
	w.restart(t, "HATCH_CGROUP="+g.path)
	if got := w.inside(t, idle[1], "echo well"); got != "well" {
		t.Errorf("another guest says %q", got)
	}
	for _, v := range []api.VM{greedy, idle[0]} {
		w.delete(t, v.ID)
	}
	g.limitMemory(t, 4<<30)
	w.delete(t, w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit}).ID)
	w.delete(t, idle[1].ID)
}

// testScarceTasks lets the cgroup of all VMs take no more processes: a create fails
// with a reason and leaves nothing, and VMs are stopped and deleted.
func testScarceTasks(t *testing.T, w *world) {
	g := newVMGroup(t)
	w.restart(t, "HATCH_CGROUP="+g.path)
	t.Cleanup(func() { w.restart(t) })
	made := [2]api.VM{}
	for i := range made {
		made[i] = w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	}
	before := w.traces(t)
	g.set(t, "pids", "pids.max", "pids.max", "1")
	awaitPart(t, w, "processes", "degraded")
	if _, err := w.client.CreateVM(t.Context(), minimal(), client.CreateOptions{}); !client.HasCode(err, "processes_exhausted") {
		t.Errorf("a create without processes gets %v", err)
	}
	failed := w.failedVM(t, before)
	requireCleanFailure(t, failed, "machine")
	w.delete(t, failed.ID)
	w.restart(t, "HATCH_CGROUP="+g.path)
	if got := w.inside(t, made[0], "echo well"); got != "well" {
		t.Errorf("a guest says %q", got)
	}
	w.stop(t, made[0].ID)
	w.delete(t, made[1].ID)
	g.set(t, "pids", "pids.max", "pids.max", "max")
	awaitPart(t, w, "processes", "ok")
	if v, err := w.client.StartVM(t.Context(), made[0].ID); err != nil || v.State != api.StateRunning {
		t.Errorf("with processes again a VM is %q: %v", v.State, err)
	}
	w.delete(t, made[0].ID)
}

// vmGroup is a parent for VMs' cgroups, in both versions.
type vmGroup struct {
	path    string
	unified bool
}

const cgroups = "/sys/fs/cgroup"

func newVMGroup(t *testing.T) *vmGroup {
	t.Helper()
	g := &vmGroup{path: fmt.Sprintf("/hatch-e2e-%d", os.Getpid())} // the sandboxes share the hierarchy
	_, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers"))
	g.unified = err == nil
	for _, dir := range g.dirs() {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
	}
	return g
}

func (g *vmGroup) dirs() []string {
	if g.unified {
		return []string{filepath.Join(cgroups, g.path)}
	}
	var dirs []string
	for _, controller := range []string{"memory", "pids", "cpu"} {
		dirs = append(dirs, filepath.Join(cgroups, controller, g.path))
	}
	return dirs
}

// file returns the path of a control file, whose names differ between the versions.
func (g *vmGroup) file(controller, v1, v2 string) string {
	if g.unified {
		return filepath.Join(cgroups, g.path, v2)
	}
	return filepath.Join(cgroups, controller, g.path, v1)
}

func (g *vmGroup) set(t *testing.T, controller, v1, v2, value string) {
	t.Helper()
	if err := os.WriteFile(g.file(controller, v1, v2), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func (g *vmGroup) limitMemory(t *testing.T, bytes int64) {
	t.Helper()
	g.set(t, "memory", "memory.limit_in_bytes", "memory.max", strconv.FormatInt(bytes, 10))
}

// reclaim frees what the kernel can read from disks again.
func (g *vmGroup) reclaim() {
	_ = os.WriteFile(g.file("memory", "memory.force_empty", "memory.reclaim"), []byte("4G"), 0) // less can be freed
}

func (g *vmGroup) usedMemory(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(g.file("memory", "memory.usage_in_bytes", "memory.current"))
	if err != nil {
		t.Fatal(err)
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// testFullMemoryDisk makes the file system of guests' memory too small for what they
// have. Guests cannot do that, because it is as large as the host's memory.
func testFullMemoryDisk(t *testing.T, w *world) {
	body := minimal()
	body.MemMiB = new(greedyMem)
	greedy := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	idle := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	var st unix.Statfs_t
	if err := unix.Statfs(w.data("memory"), &st); err != nil {
		t.Fatal(err)
	}
	resize := func(bytes int64) {
		if err := unix.Mount("", w.data("memory"), "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
			t.Fatal(err)
		}
	}
	all := int64(st.Blocks) * st.Bsize
	t.Cleanup(func() { resize(all) })
	resize(int64(st.Blocks-st.Bfree)*st.Bsize + leftForGuest<<20)
	awaitPart(t, w, "memory", "degraded")
	before := w.traces(t)
	if refused, err := w.client.CreateVM(t.Context(), minimal(), client.CreateOptions{}); !client.IsExhausted(err) {
		t.Errorf("a VM is created without memory: %s, %v", refused.ID, err)
	}
	failed := w.failedVM(t, before)
	requireCleanFailure(t, failed, "memory")
	w.delete(t, failed.ID)
	w.fillMemory(t, greedy)
	w.awaitError(t, greedy.ID, "memory")
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	w.stop(t, idle.ID)
	for _, v := range []api.VM{greedy, idle} {
		w.delete(t, v.ID)
	}
	resize(all)
	awaitPart(t, w, "memory", "ok")
	w.delete(t, w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit}).ID)
}

// testDatabaseAway stops the database's server while hatchd runs, and while it starts.
// Guests run on, and all works once it is back.
func testDatabaseAway(t *testing.T, w *world) {
	server, err := postgres.Start()
	if err != nil {
		t.Fatalf("cannot start PostgreSQL: %v", err)
	}
	t.Cleanup(func() { _ = server.End() })
	driver := w.driver
	w.driver = append(w.driver[:len(driver):len(driver)], "HATCH_DATABASE_URL="+server.DSN("postgres"))
	w.moveToSmallDisk(t)
	t.Cleanup(func() { w.driver = driver })
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	pid := vmm(t, v).pid

	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	awaitPart(t, w, "database", "degraded")
	if _, err := w.client.StopVM(t.Context(), v.ID); !client.HasCode(err, "database_unavailable") {
		t.Errorf("a stop gets %v", err)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitPart(t, w, "database", "ok")
	if got := w.inside(t, v, "echo well"); got != "well" {
		t.Errorf("the guest says %q", got)
	}

	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	w.stopDaemon(t, syscall.SIGKILL)
	if err := w.daemon.Start(); err == nil {
		t.Error("hatchd starts without its database")
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	w.startDaemon(t)
	if got := w.inside(t, v, "echo well"); got != "well" || vmm(t, v).pid != pid {
		t.Errorf("the guest says %q", got)
	}
	w.stop(t, v.ID)
	w.delete(t, v.ID)
}
