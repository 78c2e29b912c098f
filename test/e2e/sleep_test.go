//go:build system

package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// durableLimit bounds the wait for a small memory to be on disk.
const durableLimit = 30 * time.Second

// testSleep puts one guest to sleep and wakes it, again and again: with its memory
// in RAM, from disk, and over restarts of hatchd.
func testSleep(t *testing.T, w *world) {
	before := w.traces(t)
	body := minimal()
	body.MemMiB = new(5 * minimalMem) // room for the pattern
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	boot := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id")
	p := w.pattern(t, v)
	for cycle := range 10 {
		w.sleep(t, v)
		if cycle%2 == 0 {
			w.awaitDurable(t, v.ID)
		}
		if cycle == 4 {
			w.stopDaemon(t, syscall.SIGKILL)
			w.startDaemon(t)
		}
		if cycle == 5 {
			w.stopDaemon(t, syscall.SIGTERM)
			w.startDaemon(t)
		}
		w.wake(t, v)
		requireTime(t, func() string { return w.inside(t, v, "date +%s") })
		p.require(t)
	}
	if got := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id"); got != boot {
		t.Errorf("the guest has rebooted: boot %s, was %s", got, boot)
	}
	w.wakeBySSH(t, v)
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	w.requireNotWoken(t, v)
	w.startAsleep(t, v)
	w.stopAsleep(t, v)
	w.startAsleep(t, v)
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	w.delete(t, v.ID)
	w.requireTraces(t, before)
}

// stopAsleep stops a sleeping VM, which drops its memory and keeps its disk.
func (w *world) stopAsleep(t *testing.T, v api.VM) {
	t.Helper()
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	stopped, err := w.client.StopVM(t.Context(), v.ID)
	if err != nil || stopped.State != api.StateStopped || stopped.Sleep != nil {
		t.Errorf("stopped asleep it is %s (%s), %+v, %v", stopped.State, stopped.StateReason, stopped.Sleep, err)
	}
	var left []string
	err = sandbox.Poll(normalReply, func() (bool, error) {
		left = names(t, w.data("vms", v.ID))
		return !slices.ContainsFunc(left, func(name string) bool { return strings.HasPrefix(name, "sleep") }), nil
	})
	if err != nil || !slices.Contains(left, "disk.img") {
		t.Errorf("stopped asleep it has the files %v", left)
	}
	w.requireNoRAM(t, v)
}

// requireNoRAM checks that a VM has no process and no memory in the host's RAM.
func (w *world) requireNoRAM(t *testing.T, v api.VM) {
	t.Helper()
	err := sandbox.Poll(normalReply, func() (bool, error) {
		return !slices.ContainsFunc(names(t, w.data("memory")), func(name string) bool { return strings.HasPrefix(name, v.ID) }), nil
	})
	if err != nil {
		t.Errorf("%s does not run; in RAM are %v", v.ID, names(t, w.data("memory")))
	}
	if slices.ContainsFunc(vmms(t), func(p process) bool { return p.runs(v) }) {
		t.Errorf("%s does not run, but has a process", v.ID)
	}
}

// pattern is a file of 200 MiB in a guest's memory, which must not change, and a
// file on its disk, which each check extends by a line.
type pattern struct {
	*world
	vm     api.VM
	sum    string
	checks int
}

func (w *world) pattern(t *testing.T, v api.VM) *pattern {
	t.Helper()
	w.inside(t, v, "mkdir -p /pattern && mount -t tmpfs -o size=75% pattern /pattern && dd if=/dev/urandom of=/pattern/part bs=1M count=8")
	// The lines between the parts shift them: no two pages are the same.
	w.inside(t, v, "for i in $(seq 25); do echo part $i; cat /pattern/part; done >/pattern/file && rm /pattern/part")
	return &pattern{world: w, vm: v, sum: w.inside(t, v, "md5sum /pattern/file")}
}

func (p *pattern) require(t *testing.T) {
	t.Helper()
	p.checks++
	got := p.inside(t, p.vm, fmt.Sprintf("md5sum /pattern/file && echo %d >>/written && sync && wc -l </written", p.checks))
	if want := fmt.Sprintf("%s\n%d", p.sum, p.checks); got != want {
		t.Fatalf("after %d sleeps the pattern and the file are %q, want %q", p.checks, got, want)
	}
}

// requireNotWoken checks that a guest does not wake, and stays asleep, while a file
// of its saved state is damaged or of another QEMU or processor. It leaves the
// memory damaged.
func (w *world) requireNotWoken(t *testing.T, v api.VM) {
	t.Helper()
	saved, running := w.data("vms", v.ID, "sleep"), vmms(t)
	for _, damage := range []struct {
		what, path string
		do         func(*testing.T, string)
		code       string
	}{
		{"devices flipped", filepath.Join(saved, "devices"), flipByte, "saved_unusable"},
		{"devices cut", filepath.Join(saved, "devices"), cutShort, "saved_unusable"},
		{"another version", filepath.Join(saved, "manifest.json"), changeValue(`"version": "`), "saved_unusable"},
		{"another processor", filepath.Join(saved, "manifest.json"), changeValue(`"cpu": "`), "saved_unusable"},
		{"no disk", w.data("vms", v.ID, "disk.img"), remove, "disk_missing"},
		{"memory cut", filepath.Join(saved, "memory"), cutShort, "saved_unusable"},
		{"no memory", filepath.Join(saved, "memory"), remove, "saved_unusable"},
		{"memory flipped", filepath.Join(saved, "memory"), flipByte, "saved_unusable"},
	} {
		t.Run(damage.what, func(t *testing.T) {
			restore := setAside(t, damage.path)
			damage.do(t, damage.path)
			_, err := w.client.WakeVM(t.Context(), v.ID)
			if !client.HasCode(err, damage.code) {
				t.Errorf("wake: %v", err)
			}
			if now := w.get(t, v.ID); now.State != api.StateSnapshotted || now.Sleep == nil {
				t.Errorf("it is %s (%s)", now.State, now.StateReason)
			}
			if now := vmms(t); !slices.Equal(now, running) {
				t.Errorf("the VMMs are %+v, before %+v", now, running)
			}
			restore()
		})
	}
	w.wake(t, v) // undamaged it works
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	flipByte(t, filepath.Join(saved, "memory"))
}

// sleep puts a VM to sleep and checks that its process and its TAP are gone.
func (w *world) sleep(t *testing.T, v api.VM) {
	t.Helper()
	p := vmm(t, v)
	began := time.Now()
	slept, err := w.client.SleepVM(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("asleep after %s", time.Since(began).Round(time.Millisecond))
	if slept.State != api.StateSnapshotted || slept.Sleep == nil || slept.Sleep.SizeBytes == 0 {
		t.Errorf("asleep it is %s, %+v", slept.State, slept.Sleep)
	}
	if slept.GuestIP != v.GuestIP || slept.SSHPort != v.SSHPort || slept.GuestMAC != v.GuestMAC {
		t.Errorf("asleep it has %s, port %d, %s", slept.GuestIP, slept.SSHPort, slept.GuestMAC)
	}
	for _, other := range vmms(t) {
		if other.pid == p.pid {
			t.Error("it sleeps, but its VMM runs")
		}
	}
	if _, err := net.InterfaceByName(v.TapName); err == nil {
		t.Error("it sleeps, but has a TAP")
	}
}

// awaitDurable waits until the memory of a sleeping VM is on disk and no longer in
// RAM.
func (w *world) awaitDurable(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), durableLimit)
	defer cancel()
	began := time.Now()
	now, err := w.client.SleepVMDurably(ctx, id) // it sleeps already
	if err != nil || now.Sleep == nil || !now.Sleep.Durable {
		t.Fatalf("its memory does not become durable: %v, %+v", err, now.Sleep)
	}
	t.Logf("durable after another %s, %d MiB", time.Since(began).Round(time.Millisecond), now.Sleep.SizeBytes>>20)
	w.requireNoRAM(t, now)
}

// wake wakes a VM and waits until its agent answers.
func (w *world) wake(t *testing.T, v api.VM) {
	t.Helper()
	began := time.Now()
	woken, err := w.client.WakeVM(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	awake := time.Since(began)
	if woken.State != api.StateRunning || woken.Sleep != nil || woken.GuestIP != v.GuestIP || woken.SSHPort != v.SSHPort {
		t.Errorf("awake it is %s, %+v, %s, port %d", woken.State, woken.Sleep, woken.GuestIP, woken.SSHPort)
	}
	w.await(t, v.ID, "agent", normalReply)
	t.Logf("awake after %s, the agent answers after %s", awake.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// requireTime checks that a guest's clock is right, to a second.
func requireTime(t *testing.T, ask func() string) {
	t.Helper()
	before := time.Now().Unix()
	answer := ask()
	at, err := strconv.ParseInt(answer, 10, 64)
	if err != nil {
		t.Fatalf("the guest's time is %q", answer)
	}
	if after := time.Now().Unix(); at < before-1 || at > after+1 {
		t.Errorf("the guest's time is %d, the host's between %d and %d", at, before, after)
	}
}

// inside runs a shell line in a guest, which must succeed, and returns its output.
func (w *world) inside(t *testing.T, v api.VM, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	result, err := w.client.RunExec(ctx, v.ID, api.RunExec{Command: api.Command{Shell: line}})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("%q fails: %v, %+v", line, err, result)
	}
	return strings.TrimSpace(result.Stdout)
}

// testSleepDuringBoot puts a guest to sleep as soon as its CPUs run.
func testSleepDuringBoot(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "running"})
	w.sleep(t, v)
	if _, err := w.client.WakeVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.await(t, v.ID, "agent", readyLimit)
	took(t, "from the wake of a guest that had just begun to boot until its agent answers", began)
	if text, err := w.log(t, v.ID, client.LogOptions{Tail: -1}); err != nil || strings.Contains(text, "panic") {
		t.Errorf("the guest has not gone on (%v):\n%s", err, text)
	}
	w.delete(t, v.ID)
}

// wakeBySSH connects to the SSH port of a sleeping VM, and waits until the connection has
// been served: until then it would wake the VM again.
func (w *world) wakeBySSH(t *testing.T, v api.VM) {
	t.Helper()
	w.sleep(t, v)
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(v.SSHPort)))
	if err != nil {
		t.Fatalf("the SSH port of a sleeping VM is closed: %v", err)
	}
	defer func() { _ = conn.Close() }()
	w.await(t, v.ID, api.StateRunning, normalReply)
	if err := sandbox.Poll(normalReply, func() (bool, error) { return !w.get(t, v.ID).InUse, nil }); err != nil {
		t.Errorf("the VM is still in use: %v", err)
	}
}

// startAsleep starts a sleeping VM, which drops its memory and boots it.
func (w *world) startAsleep(t *testing.T, v api.VM) {
	t.Helper()
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	w.await(t, v.ID, "ready", readyLimit)
	if got := w.inside(t, v, "ls /pattern; tail -n 1 /written"); got != "10" {
		t.Errorf("after a cold start it shows %q; want its disk and no memory", got)
	}
}

// testSleepUnderSSH puts a Debian guest to sleep again and again under an SSH
// session, whose input wakes it.
func testSleepUnderSSH(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	s := w.login(t, v)
	boot := s.bootID(t)
	in, lines := s.echo(t)
	p := w.pattern(t, v)
	for cycle := range 10 {
		w.sleep(t, v)
		if cycle%2 == 1 {
			w.awaitDurable(t, v.ID)
		}
		began := time.Now()
		requireEcho(t, in, lines)
		took(t, "from a line typed at a sleeping guest until its echo", began)
		if now := w.get(t, v.ID); now.State != api.StateRunning {
			t.Errorf("it answers, but is %s", now.State)
		}
		requireTime(t, func() string { return w.inside(t, v, "date +%s") })
		p.require(t)
	}
	w.inside(t, v, "umount /pattern && rm /written")
	w.await(t, v.ID, "agent", normalReply)
	if got := s.bootID(t); got != boot {
		t.Errorf("the guest has rebooted: boot %s, was %s", got, boot)
	}
}
