//go:build system

package e2e

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/test/sandbox"
)

// count returns the probe's counter, which increases all the time.
func (w *world) count(t *testing.T, v api.VM) int {
	t.Helper()
	n, err := strconv.Atoi(w.inside(t, v, "count"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// requireProgress checks that a probe has not rebooted since it had a count, and
// returns its count.
func (w *world) requireProgress(t *testing.T, v api.VM, since int) int {
	t.Helper()
	now := w.count(t, v)
	if now <= since {
		t.Fatalf("the count was %d, and is %d", since, now)
	}
	return now
}

func testProbeLife(t *testing.T, w *world) {
	v := w.probe(t)
	if v.VMM != "firecracker" || condition(v, api.ConditionAgentReady).Status != api.StatusTrue {
		t.Errorf("it runs on %s, conditions %+v", v.VMM, v.Conditions)
	}
	if got := w.inside(t, v, "echo hello from inside"); got != "echo: hello from inside" {
		t.Errorf("the guest prints %q", got)
	}
	w.requireProbeMemory(t, v)
	before := w.count(t, v)
	if paused, err := w.client.PauseVM(t.Context(), v.ID); err != nil || paused.State != api.StatePaused {
		t.Errorf("after pause: %s, %v", paused.State, err)
	}
	if resumed, err := w.client.ResumeVM(t.Context(), v.ID); err != nil || resumed.State != api.StateRunning {
		t.Errorf("after resume: %s, %v", resumed.State, err)
	}
	if after := w.count(t, v); after <= before {
		t.Errorf("the count was %d, and %d after a pause", before, after)
	}
	w.inside(t, v, "write hatch-disk DATA")
	stopped, err := w.client.StopVM(t.Context(), v.ID)
	if err != nil || stopped.State != api.StateStopped {
		t.Fatalf("after stop: %s (%s), %v", stopped.State, stopped.StateReason, err)
	}
	if left := w.jails(t); len(left) > 0 {
		t.Errorf("the stopped VM has left %v", left)
	}
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	v = w.await(t, v.ID, "ready", readyLimit)
	if got := w.inside(t, v, "read hatch-disk 4"); got != "read: DATA" {
		t.Errorf("after a stop and a start its disk has %q", got)
	}
	w.delete(t, v.ID)
}

// requireProbeMemory checks that the balloon reports the probe's memory, half of which
// is free; its agent does not.
func (w *world) requireProbeMemory(t *testing.T, v api.VM) {
	t.Helper()
	var m api.MemMetrics
	err := sandbox.Poll(readyLimit, func() (bool, error) {
		m = w.metrics(t, v.ID).Memory
		return m.GuestTotalBytes != nil, nil
	})
	if err != nil {
		t.Fatalf("the guest's memory is not reported: %v", err)
	}
	if total, used := *m.GuestTotalBytes, *m.GuestUsedBytes; total != probeMem<<20 || used != probeMem<<19 {
		t.Errorf("of %d bytes it uses %d", total, used)
	}
}

// testProbeEnds ends guests in every way, from inside and by a kill of the VMM.
func testProbeEnds(t *testing.T, w *world) {
	for _, end := range []struct {
		name          string
		end           func(t *testing.T, v api.VM)
		state, reason string
	}{
		{"poweroff", func(_ *testing.T, v api.VM) { w.runUnanswered(v, "poweroff") }, api.StateStopped, "powered itself off"},
		{"panic", func(_ *testing.T, v api.VM) { w.runUnanswered(v, "panic") }, api.StateError, "panic"},
		{"kill", func(t *testing.T, v api.VM) { vmm(t, v).kill(t) }, api.StateError, "the VMM ended unexpectedly"},
	} {
		t.Run(end.name, func(t *testing.T) {
			v := w.probe(t)
			end.end(t, v)
			if now := w.await(t, v.ID, end.state, normalReply); !strings.Contains(now.StateReason, end.reason) {
				t.Errorf("it is %s, %q", now.State, now.StateReason)
			}
			if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
				t.Fatal(err)
			}
			w.await(t, v.ID, "ready", readyLimit)
			w.delete(t, v.ID)
		})
	}
	t.Run("reboot", func(t *testing.T) {
		v := w.probe(t)
		before := vmm(t, v)
		w.runUnanswered(v, "reboot")
		before.awaitExit(t, normalReply) // a reset ends Firecracker
		if err := sandbox.Poll(normalReply, func() (bool, error) { return len(vmms(t)) == 1, nil }); err != nil {
			t.Fatalf("it is not started again: %v", err)
		}
		w.await(t, v.ID, "ready", readyLimit)
		w.delete(t, v.ID)
	})
}

// runUnanswered runs a line in a guest that may end before it answers.
func (w *world) runUnanswered(v api.VM, line string) {
	ctx, cancel := context.WithTimeout(context.Background(), normalReply)
	defer cancel()
	_, _ = w.client.RunExec(ctx, v.ID, api.RunExec{Command: api.Command{Shell: line}})
}

// testProbeCannot requests what this guest's agent does not support.
func testProbeCannot(t *testing.T, w *world) {
	v := w.probe(t)
	for _, err := range w.client.ListFiles(t.Context(), v.ID, "/") {
		requireUnsupported(t, err, "agent_too_old")
	}
	w.delete(t, v.ID)
}

func requireUnsupported(t *testing.T, err error, code string) {
	t.Helper()
	var answer *client.Error
	if !errors.As(err, &answer) {
		t.Errorf("the answer is %v, want a refusal", err)
		return
	}
	if p := answer.Problem; p.Status != http.StatusNotImplemented || p.Code != code || p.Hint == "" {
		t.Errorf("the answer is %+v, want 501 with code %s and a hint", p, code)
	}
}

// testProbeFrames sends frames with forged addresses from a guest.
func testProbeFrames(t *testing.T, w *world) {
	v, other := w.probe(t), w.probe(t)
	bridge, err := net.InterfaceByName("hatch0")
	if err != nil {
		t.Fatal(err)
	}
	own, stranger := [2]string{v.GuestMAC, v.GuestIP}, [2]string{"02:00:00:00:00:77", "172.16.0.200"}
	for _, from := range [][2]string{{own[0], stranger[1]}, {stranger[0], own[1]}, stranger, {own[0], other.GuestIP}, {other.GuestMAC, other.GuestIP}, own} {
		out := datagram(t, bridge.HardwareAddr, from[0], from[1], "from "+from[0]+" "+from[1])
		if got := w.inside(t, v, "send "+hex.EncodeToString(out)); got != "send: ok" {
			t.Fatalf("the guest prints %q", got)
		}
	}
	// Frames leave in order: once the last has arrived, no other is under way.
	if err := sandbox.Poll(normalReply, func() (bool, error) { return w.internet.hasHeard("from " + own[0] + " " + own[1]), nil }); err != nil {
		t.Fatalf("a datagram with the guest's own addresses does not arrive: %v", err)
	}
	for _, heard := range w.internet.datagrams() {
		if strings.HasPrefix(heard, "from ") && heard != "from "+own[0]+" "+own[1] {
			t.Errorf("a forged frame has left: %s", heard)
		}
	}
	w.delete(t, v.ID)
	w.delete(t, other.ID)
}

// datagram returns a frame with a UDP datagram to the internet's port 80.
func datagram(t *testing.T, to net.HardwareAddr, fromMAC, fromIP, text string) []byte {
	t.Helper()
	from, err := net.ParseMAC(fromMAC)
	if err != nil {
		t.Fatal(err)
	}
	source, target := netip.MustParseAddr(fromIP).As4(), netip.MustParseAddr(internetAddr).As4()
	const port, etherLen, ipLen, udpLen = 80, 14, 20, 8
	f := slices.Concat(to, from, []byte{0x08, 0x00})
	f = append(f, 0x45, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(ipLen+udpLen+len(text)))
	f = append(f, 0, 1, 0, 0, 64, syscall.IPPROTO_UDP, 0, 0)
	f = slices.Concat(f, source[:], target[:])
	binary.BigEndian.PutUint16(f[etherLen+10:], checksum(f[etherLen:]))
	f = binary.BigEndian.AppendUint16(f, 4000)
	f = binary.BigEndian.AppendUint16(f, port)
	f = binary.BigEndian.AppendUint16(f, uint16(udpLen+len(text)))
	f = append(f, 0, 0) // no checksum
	return append(f, text...)
}

// checksum returns the checksum of an IPv4 header.
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func testProbeSleep(t *testing.T, w *world) {
	v := w.probe(t)
	count := w.count(t, v)
	for cycle := range 100 {
		w.sleep(t, v)
		if left := w.jails(t); len(left) > 0 {
			t.Errorf("the sleeping VM has left %v", left)
		}
		if cycle%10 == 0 {
			w.awaitDurable(t, v.ID)
		}
		if cycle == 40 {
			w.stopDaemon(t, syscall.SIGKILL)
			w.startDaemon(t)
		}
		w.wake(t, v)
		count = w.requireProgress(t, v, count)
	}
	if got := strings.Count(w.console(t.Context(), v.ID), "woken"); got == 0 {
		t.Error("the guest was not told that it slept")
	}
	w.startProbeAsleep(t, v)
	w.delete(t, v.ID)
	sleeper := w.probe(t)
	w.sleep(t, sleeper)
	w.delete(t, sleeper.ID)
}

// startProbeAsleep starts a sleeping VM, which boots it.
func (w *world) startProbeAsleep(t *testing.T, v api.VM) {
	t.Helper()
	count := w.count(t, v)
	w.sleep(t, v)
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	w.await(t, v.ID, "ready", readyLimit)
	if now := w.count(t, v); now >= count {
		t.Errorf("after a cold start the count is %d, before it was %d", now, count)
	}
}

// testProbeAdoption restarts hatchd in several ways under a VM that runs, one that is
// paused, and one that sleeps.
func testProbeAdoption(t *testing.T, w *world) {
	running, paused, asleep := w.probe(t), w.probe(t), w.probe(t)
	counts := map[string]int{}
	for _, v := range []api.VM{running, paused, asleep} {
		counts[v.ID] = w.count(t, v)
	}
	if _, err := w.client.PauseVM(t.Context(), paused.ID); err != nil {
		t.Fatal(err)
	}
	w.sleep(t, asleep)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		pid := vmm(t, running).pid
		w.stopDaemon(t, signal)
		w.startDaemon(t)
		w.await(t, running.ID, "ready", normalReply)
		if now := vmm(t, running); now.pid != pid {
			t.Errorf("the VM has process %d, before it was %d", now.pid, pid)
		}
		counts[running.ID] = w.requireProgress(t, running, counts[running.ID])
		for id, want := range map[string]string{paused.ID: api.StatePaused, asleep.ID: api.StateSnapshotted} {
			if now := w.get(t, id); now.State != want {
				t.Errorf("%s is %s (%s), want %s", id, now.State, now.StateReason, want)
			}
		}
	}
	w.withoutFirecracker(t, running)
	if _, err := w.client.ResumeVM(t.Context(), paused.ID); err != nil {
		t.Fatal(err)
	}
	w.wake(t, asleep)
	for _, v := range []api.VM{running, paused, asleep} {
		w.requireProgress(t, v, counts[v.ID])
		w.delete(t, v.ID)
	}
}

// withoutFirecracker restarts hatchd with HATCH_VMM=auto under a running VM. Without a
// proven KVM it chooses QEMU, and must not touch the VM.
func (w *world) withoutFirecracker(t *testing.T, v api.VM) {
	t.Helper()
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, "HATCH_VMM=auto")
	health, err := w.client.Health(t.Context())
	if want := map[bool]string{true: "firecracker", false: "qemu"}[kvm.Probe().Usable]; err != nil || health.VMM != want {
		t.Errorf("auto chooses %s, %v; want %s", health.VMM, err, want)
	}
	if health.VMM == "qemu" {
		if now := w.get(t, v.ID); now.State != api.StateRunning {
			t.Errorf("the VM is %s (%s) where its driver cannot be used", now.State, now.StateReason)
		}
		if _, err := w.client.StopVM(t.Context(), v.ID); !client.IsUnavailable(err) {
			t.Errorf("a stop is answered with %v", err)
		}
	}
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t)
}
