//go:build lab

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// productTests are what users do on any host.
var productTests = []hostTest{
	{"the doctor finds nothing wrong", testDoctor},
	{"a life on firecracker", func(t *testing.T, w *world) { testLife(t, w, "auto", "firecracker") }},
	{"a life on qemu", func(t *testing.T, w *world) { testLife(t, w, "qemu", "qemu") }},
	{"limits hold", testLimits},
	{"hatchd restarts under its VMs", testRestarts},
	{"the host restarts", testHostRestart},
	{"the power is cut", testPowerCut},
}

// TestProduct installs Hatch on a host with systemd, and uses it there: guests on
// Firecracker and on QEMU, both with KVM.
func TestProduct(t *testing.T) { testProduct(t, Debian12) }

// TestDebian13 is TestProduct with the newer Debian's systemd, QEMU and nftables, and
// the kernel of the other hosts.
func TestDebian13(t *testing.T) {
	if testing.Short() {
		t.Skip("a host of its own; make test-lab runs it")
	}
	testProduct(t, Debian13)
}

func testProduct(t *testing.T, release string) {
	newWorld(t, release, "xfs", "minimal").runAll(t, productTests)
}

func testDoctor(t *testing.T, w *world) {
	found := w.doctor(t)
	for _, name := range []string{"privileges", "kvm", "qemu", "cgroups", "reflink", "service", "firewall", "agent"} {
		if c := found[name]; c.Status != "pass" {
			t.Errorf("%s: %q: %s", name, c.Status, c.Message)
		}
	}
	if health, err := w.client.Health(t.Context()); err != nil || health.VMM != "firecracker" {
		t.Errorf("auto means %q, %v", health.VMM, err)
	}
}

// testLife leads a guest through all that a VM can do.
func testLife(t *testing.T, w *world, vmm, want string) {
	v := w.create(t, "life-"+want, vmm)
	if v.VMM != want {
		t.Fatalf("%s runs on %s, not on %s", vmm, v.VMM, want)
	}
	boot := w.bootID(t, v.ID)
	w.inside(t, v.ID, "mkdir /m && mount -t tmpfs m /m && echo kept >/m/memory && echo kept >/disk && sync")
	w.testFile(t, v.ID)

	w.do(t, "pause", v.ID, api.StatePaused, w.client.PauseVM)
	w.do(t, "resume", v.ID, api.StateRunning, w.client.ResumeVM)
	w.do(t, "sleep", v.ID, api.StateSnapshotted, w.client.SleepVM)
	w.do(t, "wake", v.ID, api.StateRunning, w.client.WakeVM)
	w.requireMemory(t, v.ID, boot)
	w.do(t, "durable sleep", v.ID, api.StateSnapshotted, w.client.SleepVMDurably)
	w.requireMemory(t, v.ID, boot) // the command wakes it

	w.testSnapshot(t, v.ID, boot)
	w.testFork(t, v.ID)

	w.do(t, "stop", v.ID, api.StateStopped, w.client.StopVM)
	w.do(t, "start", v.ID, api.StateRunning, w.client.StartVM)
	w.await(t, v.ID, "ready")
	if got := w.inside(t, v.ID, "cat /disk"); got != "kept" || w.bootID(t, v.ID) == boot {
		t.Errorf("after a stop and a start the disk has %q", got)
	}
	if m, err := w.client.VMMetrics(t.Context(), v.ID); err != nil || m.UptimeSeconds < 1 {
		t.Errorf("metrics: %+v, %v", m, err)
	}
	_, _ = w.client.RunExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: "poweroff -f"}}) // its answer may be lost
	if off := w.await(t, v.ID, "stopped"); off.StateReason == "" {
		t.Error("it is off without a reason")
	}
	w.remove(t, v.ID)
}

// requireMemory checks that a guest is the same that it was before.
func (w *world) requireMemory(t *testing.T, id, boot string) {
	t.Helper()
	if got := w.inside(t, id, "cat /m/memory /disk"); got != "kept\nkept" {
		t.Errorf("memory and disk have %q", got)
	}
	if w.bootID(t, id) != boot {
		t.Errorf("%s has booted again", id)
	}
}

// testFile writes bytes that are no text, and reads them back.
func (w *world) testFile(t *testing.T, id string) {
	t.Helper()
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(i ^ i>>8)
	}
	if _, err := w.client.WriteFile(t.Context(), id, "/data", bytes.NewReader(content), client.WriteOptions{}); err != nil {
		t.Fatalf("cannot write a file: %v", err)
	}
	f, err := w.client.ReadFile(t.Context(), id, "/data", client.FilePart{})
	if err != nil {
		t.Fatalf("cannot read a file: %v", err)
	}
	defer func() { _ = f.Close() }()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil || [32]byte(hash.Sum(nil)) != sha256.Sum256(content) {
		t.Errorf("the file has changed: %v", err)
	}
}

// testSnapshot restores a snapshot, and makes a clone of it.
func (w *world) testSnapshot(t *testing.T, id, boot string) {
	t.Helper()
	began := time.Now()
	snap, err := w.client.CreateSnapshot(t.Context(), id, api.CreateSnapshot{})
	if err != nil {
		t.Fatalf("cannot take a snapshot: %v", err)
	}
	took(t, "snapshot", began)
	w.inside(t, id, "rm /m/memory /disk")
	w.do(t, "restore", id, api.StateRunning, func(ctx context.Context, id string) (api.VM, error) {
		return w.client.RestoreVM(ctx, id, snap.ID)
	})
	w.requireMemory(t, id, boot)
	began = time.Now()
	clone, err := w.client.CreateVM(t.Context(), api.CreateVM{SnapshotID: snap.ID}, client.CreateOptions{Wait: "ready"})
	if err != nil {
		t.Fatalf("cannot clone the snapshot: %v", err)
	}
	took(t, "a clone is ready", began)
	w.requireMemory(t, clone.ID, boot)
	w.remove(t, clone.ID)
	if err := w.client.DeleteSnapshot(t.Context(), snap.ID); err != nil {
		t.Error(err)
	}
}

// testFork makes two forks, which have what the guest has, and addresses of their own.
func (w *world) testFork(t *testing.T, id string) {
	t.Helper()
	began := time.Now()
	forks, err := w.client.ForkVM(t.Context(), id, api.ForkVM{Count: new(2)})
	if err != nil || len(forks.VMs) != 2 {
		t.Fatalf("cannot fork: %v, %+v", err, forks)
	}
	took(t, "two forks", began)
	for _, f := range forks.VMs {
		f = w.await(t, f.ID, "ready")
		if got := w.inside(t, f.ID, "cat /disk; ip -4 -o addr show eth0"); !strings.HasPrefix(got, "kept\n") || !strings.Contains(got, f.GuestIP+"/") {
			t.Errorf("the fork with %s has %q", f.GuestIP, got)
		}
		w.remove(t, f.ID)
	}
}

// testLimits checks that a guest that burns its CPU stays within the limits of its
// cgroup, which lies where systemd has delegated it.
func testLimits(t *testing.T, w *world) {
	v := w.create(t, "burner", "auto")
	group := w.run(t, "find /sys/fs/cgroup -type d -name '"+v.ID+"*' | head -n 1")
	if !strings.HasPrefix(group, "/sys/fs/cgroup/system.slice/hatch-vms.service/") {
		t.Errorf("its cgroup is %q", group)
	}
	quota := strings.Fields(w.run(t, "cat "+group+"/cpu.max"))
	limit, err := strconv.ParseFloat(quota[0], 64)
	if err != nil {
		t.Fatalf("its limit is %v", quota)
	}
	if _, err := w.client.StartExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: "while :; do :; done"}}); err != nil {
		t.Fatal(err)
	}
	used := w.run(t, "a=$(awk '$1==\"usage_usec\"{print $2}' "+group+"/cpu.stat); sleep 5; "+
		"awk -v a=$a '$1==\"usage_usec\"{print ($2-a)/5000000}' "+group+"/cpu.stat")
	share, err := strconv.ParseFloat(used, 64)
	if err != nil || share > 1.1*limit/100_000 || share < 0.3 {
		t.Errorf("it uses %s of a processor, %v; its limit is %v", used, err, quota)
	}
	for file, want := range map[string]string{"memory.swap.max": "0", "memory.oom.group": "1"} {
		if got := w.run(t, "cat "+group+"/"+file); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
	w.remove(t, v.ID)
}

// testRestarts ends hatchd in every way while a guest runs on each driver.
func testRestarts(t *testing.T, w *world) {
	boots := map[string]string{}
	for _, vmm := range []string{"firecracker", "qemu"} {
		v := w.create(t, "adopted-"+vmm, vmm)
		boots[v.ID] = w.bootID(t, v.ID)
	}
	for _, command := range []string{
		"systemctl restart hatchd",
		"systemctl kill --kill-who=main -s KILL hatchd; until systemctl is-active -q hatchd; do sleep 0.2; done",
		"systemctl stop hatchd && systemctl daemon-reload && systemctl start hatchd",
	} {
		t.Run(command, func(t *testing.T) {
			began := time.Now()
			w.run(t, command)
			w.connect(t)
			for id, boot := range boots {
				w.await(t, id, "ready")
				if w.bootID(t, id) != boot {
					t.Errorf("%s has booted again", id)
				}
			}
			took(t, "both guests answer", began)
		})
	}
	for id := range boots {
		w.remove(t, id)
	}
}
