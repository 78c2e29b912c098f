//go:build system

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
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

// testSleep lets one guest sleep and wake again and again: with its memory in
// RAM, from disk, and with another hatchd in between.
func testSleep(t *testing.T, w *world) {
	before := w.look(t)
	body := minimal()
	body.MemMiB = new(5 * minimalMem) // the pattern has to fit beside the rest
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
		t.Errorf("the guest has booted anew: %s, was %s", got, boot)
	}
	w.sleepersAwake(t, v)
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	w.requireNotWoken(t, v)
	w.startAsleep(t, v)
	w.stopAsleep(t, v)
	w.startAsleep(t, v)
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	w.delete(t, v.ID)
	w.requireOnly(t, before)
}

// stopAsleep stops a VM that sleeps: its memory goes, its disk stays.
func (w *world) stopAsleep(t *testing.T, v api.VM) {
	t.Helper()
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	stopped, err := w.client.StopVM(t.Context(), v.ID)
	if err != nil || stopped.State != api.StateStopped || stopped.Sleep != nil {
		t.Errorf("stopped while it sleeps it is %s (%s), %+v, %v", stopped.State, stopped.StateReason, stopped.Sleep, err)
	}
	var left []string
	err = sandbox.Poll(normalReply, func() (bool, error) {
		left = names(t, w.data("vms", v.ID))
		return !slices.ContainsFunc(left, func(name string) bool { return strings.HasPrefix(name, "sleep") }), nil
	})
	if err != nil || !slices.Contains(left, "disk.img") {
		t.Errorf("stopped while it sleeps it has the files %v", left)
	}
	w.requireNoRAM(t, v)
}

// requireNoRAM checks that no process runs a VM, and that nothing of its memory
// is in the host's RAM.
func (w *world) requireNoRAM(t *testing.T, v api.VM) {
	t.Helper()
	err := sandbox.Poll(normalReply, func() (bool, error) {
		return !slices.ContainsFunc(names(t, w.data("memory")), func(name string) bool { return strings.HasPrefix(name, v.ID) }), nil
	})
	if err != nil {
		t.Errorf("%s does not run, and in RAM are %v", v.ID, names(t, w.data("memory")))
	}
	if slices.ContainsFunc(vmms(t), func(p process) bool { return p.runs(v) }) {
		t.Errorf("%s does not run, and has a process", v.ID)
	}
}

// pattern is 200 MiB of a guest's memory, which must stay as they are, and a file
// on its disk, which grows by a line whenever they are looked at.
type pattern struct {
	*world
	vm     api.VM
	sum    string
	looked int
}

func (w *world) pattern(t *testing.T, v api.VM) *pattern {
	t.Helper()
	w.inside(t, v, "mkdir -p /pattern && mount -t tmpfs -o size=75% pattern /pattern && dd if=/dev/urandom of=/pattern/part bs=1M count=8")
	// The lines between shift each part against the others: no two pages are the same.
	w.inside(t, v, "for i in $(seq 25); do echo part $i; cat /pattern/part; done >/pattern/file && rm /pattern/part")
	return &pattern{world: w, vm: v, sum: w.inside(t, v, "md5sum /pattern/file")}
}

func (p *pattern) require(t *testing.T) {
	t.Helper()
	p.looked++
	got := p.inside(t, p.vm, fmt.Sprintf("md5sum /pattern/file && echo %d >>/written && sync && wc -l </written", p.looked))
	if want := fmt.Sprintf("%s\n%d", p.sum, p.looked); got != want {
		t.Fatalf("after %d sleeps the pattern and the file are %q, want %q", p.looked, got, want)
	}
}

// requireNotWoken checks that a sleeping guest is not woken from what has been
// damaged, or was saved by another QEMU or on another processor, and that it
// sleeps on. The memory stays damaged.
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
		{"another version", filepath.Join(saved, "manifest.json"), pretend(`"version": "`), "saved_unusable"},
		{"another processor", filepath.Join(saved, "manifest.json"), pretend(`"cpu": "`), "saved_unusable"},
		{"no disk", w.data("vms", v.ID, "disk.img"), remove, "disk_missing"},
		{"memory cut", filepath.Join(saved, "memory"), cutShort, "saved_unusable"},
		{"no memory", filepath.Join(saved, "memory"), remove, "saved_unusable"},
		{"memory flipped", filepath.Join(saved, "memory"), flipByte, "saved_unusable"},
	} {
		t.Run(damage.what, func(t *testing.T) {
			mend := setAside(t, damage.path)
			damage.do(t, damage.path)
			_, err := w.client.WakeVM(t.Context(), v.ID)
			if !client.HasCode(err, damage.code) {
				t.Errorf("wake: %v", err)
			}
			if now := w.get(t, v.ID); now.State != api.StateSnapshotted || now.Sleep == nil {
				t.Errorf("it is %s (%s)", now.State, now.StateReason)
			}
			if now := vmms(t); !slices.Equal(now, running) {
				t.Errorf("there run %+v, and before it %+v", now, running)
			}
			mend()
		})
	}
	w.wake(t, v) // it was the damage
	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	flipByte(t, filepath.Join(saved, "memory"))
}

// pretend changes the value that follows in a manifest.
func pretend(key string) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), key) {
			t.Fatalf("there is no %s: %v", key, err)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), key, key+"not ", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// sleep puts a VM to sleep and checks that nothing of it runs any more.
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
			t.Error("it sleeps, and its VMM still lives")
		}
	}
	if _, err := net.InterfaceByName(v.TapName); err == nil {
		t.Error("it sleeps, and its TAP is still there")
	}
}

// awaitDurable waits until the memory of a VM that sleeps is on disk, and nowhere
// else.
func (w *world) awaitDurable(t *testing.T, id string) {
	t.Helper()
	began := time.Now()
	var now api.VM
	err := sandbox.Poll(durableLimit, func() (done bool, err error) {
		now, err = w.client.GetVM(t.Context(), id)
		return err == nil && now.Sleep != nil && now.Sleep.Durable, err
	})
	if err != nil {
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

// requireTime checks that a guest's clock is right within a second of the time
// in which it is asked.
func requireTime(t *testing.T, ask func() string) {
	t.Helper()
	before := time.Now().Unix()
	answer := ask()
	at, err := strconv.ParseInt(answer, 10, 64)
	if err != nil {
		t.Fatalf("the guest says that it is %q", answer)
	}
	if after := time.Now().Unix(); at < before-1 || at > after+1 {
		t.Errorf("the guest says that it is %d, and it is between %d and %d", at, before, after)
	}
}

// inside runs a line in a guest, which must go well, and returns what it says.
func (w *world) inside(t *testing.T, v api.VM, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	result, err := w.client.RunExec(ctx, v.ID, api.RunExec{Command: api.Command{Shell: line}})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("%q fails: %v, %+v", line, err, result)
	}
	return strings.TrimSpace(result.Stdout)
}

// sleepersAwake connects to the SSH port of a sleeping VM.
func (w *world) sleepersAwake(t *testing.T, v api.VM) {
	t.Helper()
	w.sleep(t, v)
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(v.SSHPort)))
	if err != nil {
		t.Fatalf("the SSH port of a sleeping VM is closed: %v", err)
	}
	defer func() { _ = conn.Close() }()
	w.await(t, v.ID, api.StateRunning, normalReply)
}

// startAsleep boots a sleeping VM anew, which drops its memory.
func (w *world) startAsleep(t *testing.T, v api.VM) {
	t.Helper()
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	w.await(t, v.ID, "ready", readyLimit)
	if got := w.inside(t, v, "ls /pattern; tail -n 1 /written"); got != "10" {
		t.Errorf("after a cold start it shows %q; the disk is wanted, and no memory", got)
	}
}

// testSleepUnderSSH lets a Debian guest sleep again and again while somebody is
// logged in.
func testSleepUnderSSH(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	s := w.login(t, v)
	boot := s.bootID(t)
	session, err := s.client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	in, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("cat"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	p := w.pattern(t, v)
	for cycle := range 10 {
		w.sleep(t, v)
		if cycle%2 == 1 {
			w.awaitDurable(t, v.ID)
		}
		began := time.Now()
		if _, err := io.WriteString(in, "still here\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := lines.ReadString('\n'); err != nil || line != "still here\n" {
			t.Fatalf("the session says %q, %v", line, err)
		}
		took(t, "from a line typed at a sleeping guest until its echo", began)
		if now := w.get(t, v.ID); now.State != api.StateRunning {
			t.Errorf("it answers, and is %s", now.State)
		}
		requireTime(t, func() string { return w.inside(t, v, "date +%s") })
		p.require(t)
	}
	w.inside(t, v, "umount /pattern && rm /written")
	w.await(t, v.ID, "agent", normalReply)
	if got := s.bootID(t); got != boot {
		t.Errorf("the guest has booted anew: %s, was %s", got, boot)
	}
}
