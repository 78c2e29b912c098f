//go:build system

package e2e

import (
	"context"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testWakeOnDemand puts a guest to sleep, reads everything that must not wake it,
// and then enters it in every way that must.
func testWakeOnDemand(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	boot := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id")
	background, err := w.client.StartExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: "cat"}, StdinOpen: true})
	if err != nil {
		t.Fatal(err)
	}

	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	w.requireReadsDoNotWake(t, v, background.ID)

	for _, entry := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"a command", func(t *testing.T) { w.inside(t, v, "true") }},
		{"a command over a WebSocket", func(t *testing.T) { w.overWebSocket(t, v, "true") }},
		{"input of an earlier command", func(t *testing.T) {
			if err := w.client.WriteExec(t.Context(), v.ID, background.ID, api.ExecInput{Data: "more\n"}); err != nil {
				t.Error(err)
			}
		}},
		{"a file that is written", func(t *testing.T) { w.write(t, v.ID, "/written", "asleep\n") }},
		{"hatch cp", func(t *testing.T) {
			w.hatch(t, "cp", v.ID+":/etc/hostname", filepath.Join(t.TempDir(), "copy"))
		}},
		{"the console", func(t *testing.T) { w.terminal(t, v.ID).close() }},
		{"a wait", func(t *testing.T) { w.await(t, v.ID, "agent", normalReply) }},
	} {
		t.Run(entry.name, func(t *testing.T) {
			if w.get(t, v.ID).State == api.StateRunning {
				w.sleep(t, v)
			}
			before, began := w.wakes(t, v), time.Now()
			entry.do(t)
			took(t, entry.name+" at a sleeping guest", began)
			if now, woken := w.get(t, v.ID), w.wakes(t, v)-before; now.State != api.StateRunning || woken != 1 {
				t.Errorf("the VM is %s, and was woken %d times", now.State, woken)
			}
		})
	}
	w.requireOneWakeForMany(t, v)
	if got := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id"); got != boot {
		t.Errorf("the guest has rebooted: boot %s, was %s", got, boot)
	}
}

// requireOneWakeForMany runs fifty commands in a sleeping VM at the same time.
func (w *world) requireOneWakeForMany(t *testing.T, v api.VM) {
	t.Helper()
	const many = 50
	w.sleep(t, v)
	before, began := w.wakes(t, v), time.Now()
	if _, err := each(many, func(ctx context.Context, _ int) (api.VM, error) {
		r, err := w.client.RunExec(ctx, v.ID, api.RunExec{Command: api.Command{Shell: "echo here"}})
		if err == nil && r.Stdout != "here\n" {
			t.Errorf("%+v", r)
		}
		return v, err
	}); err != nil {
		t.Errorf("not all commands were run: %v", err)
	}
	took(t, "fifty commands at a sleeping guest", began)
	if woken := w.wakes(t, v) - before; woken != 1 {
		t.Errorf("fifty callers woke it %d times", woken)
	}
}

// overWebSocket runs a shell line in a guest, over a WebSocket.
func (w *world) overWebSocket(t *testing.T, v api.VM, line string) {
	t.Helper()
	s, err := w.client.OpenExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: line}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for {
		out, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if out.Exit != nil {
			return
		}
	}
}

// requireReadsDoNotWake reads a sleeping VM and an exec in it.
func (w *world) requireReadsDoNotWake(t *testing.T, v api.VM, exec string) {
	t.Helper()
	before := w.wakes(t, v)
	if _, err := w.client.VMMetrics(t.Context(), v.ID); err != nil {
		t.Errorf("its metrics: %v", err)
	}
	if _, err := w.log(t, v.ID, client.LogOptions{}); err != nil {
		t.Errorf("its console log: %v", err)
	}
	if _, err := w.client.ListExecs(t.Context(), v.ID); !client.HasCode(err, "vm_not_running") {
		t.Errorf("its execs: %v", err)
	}
	if log, err := w.client.ExecLogs(t.Context(), v.ID, exec, false); !client.HasCode(err, "vm_not_running") {
		_, _ = io.Copy(io.Discard, log)
		t.Errorf("the output of an exec: %v", err)
	}
	if _, err := w.client.AttachExec(t.Context(), v.ID, exec, 0); !client.HasCode(err, "vm_not_running") {
		t.Errorf("attaching to an exec: %v", err)
	}
	w.hatch(t, "top", "--no-stream", "--all")
	w.hatch(t, "why", v.ID)
	if now := w.get(t, v.ID); now.State != api.StateSnapshotted || w.wakes(t, v) != before {
		t.Errorf("it was only read, and is %s", now.State)
	}
}

// wakes counts the wakes of a VM in the event log.
func (w *world) wakes(t *testing.T, v api.VM) int {
	t.Helper()
	n := 0
	for e, err := range w.client.ListEvents(t.Context(), client.EventOptions{VM: v.ID, Types: []string{"vm.operation"}}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Data["operation"] == "wake" {
			n++
		}
	}
	return n
}
