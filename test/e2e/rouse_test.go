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

// testRouse lets a guest sleep, and looks at it and reaches into it in every way.
func testRouse(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	boot := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id")
	left, err := w.client.StartExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: "cat"}, StdinOpen: true})
	if err != nil {
		t.Fatal(err)
	}

	w.sleep(t, v)
	w.awaitDurable(t, v.ID)
	w.requireAsleepWhenLookedAt(t, v, left.ID)

	for _, reach := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"a command", func(t *testing.T) { w.inside(t, v, "true") }},
		{"a command over a WebSocket", func(t *testing.T) { w.over(t, v, "true") }},
		{"input of an earlier command", func(t *testing.T) {
			if err := w.client.WriteExec(t.Context(), v.ID, left.ID, api.ExecInput{Data: "more\n"}); err != nil {
				t.Error(err)
			}
		}},
		{"a file that is written", func(t *testing.T) { w.write(t, v.ID, "/written", "asleep\n") }},
		{"hatch cp", func(t *testing.T) {
			w.hatch(t, "cp", v.ID+":/written", filepath.Join(t.TempDir(), "copy"))
		}},
		{"the console", func(t *testing.T) { w.terminal(t, v.ID).close() }},
		{"a wait", func(t *testing.T) { w.await(t, v.ID, "agent", normalReply) }},
	} {
		if w.get(t, v.ID).State == api.StateRunning {
			w.sleep(t, v)
		}
		before, began := w.wakings(t, v), time.Now()
		reach.do(t)
		took(t, reach.name+" at a sleeping guest", began)
		if now, told := w.get(t, v.ID), w.wakings(t, v)-before; now.State != api.StateRunning || told != 1 {
			t.Errorf("%s: the VM is %s, and was woken %d times", reach.name, now.State, told)
		}
	}
	w.rousedByMany(t, v)
	if got := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id"); got != boot {
		t.Errorf("the guest has booted anew: %s, was %s", got, boot)
	}
}

// rousedByMany has fifty callers want something of a sleeping VM.
func (w *world) rousedByMany(t *testing.T, v api.VM) {
	t.Helper()
	const many = 50
	w.sleep(t, v)
	before, began := w.wakings(t, v), time.Now()
	if _, err := each(many, func(ctx context.Context, _ int) (api.VM, error) {
		r, err := w.client.RunExec(ctx, v.ID, api.RunExec{Command: api.Command{Shell: "echo here"}})
		if err == nil && r.Stdout != "here\n" {
			t.Errorf("%+v", r)
		}
		return v, err
	}); err != nil {
		t.Errorf("not all were answered: %v", err)
	}
	took(t, "fifty commands at a sleeping guest", began)
	if told := w.wakings(t, v) - before; told != 1 {
		t.Errorf("fifty callers woke it %d times", told)
	}
}

// over runs a line in a guest, over a WebSocket.
func (w *world) over(t *testing.T, v api.VM, line string) {
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

// requireAsleepWhenLookedAt looks at a sleeping VM and at an exec in it.
func (w *world) requireAsleepWhenLookedAt(t *testing.T, v api.VM, exec string) {
	t.Helper()
	before := w.wakings(t, v)
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
	if now := w.get(t, v.ID); now.State != api.StateSnapshotted || w.wakings(t, v) != before {
		t.Errorf("it was only looked at, and is %s", now.State)
	}
}

// wakings counts the wakes of a VM that the log tells of.
func (w *world) wakings(t *testing.T, v api.VM) int {
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
