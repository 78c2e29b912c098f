package vmmtest

import (
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

func testAgentChannel(t *testing.T, h Harness) {
	_, m := boot(t, h)
	agent := dialLines(t, m, vmm.ChannelAgent)
	agent.Say("hello")
	agent.Expect(agentPrefix + "hello")
	if _, err := m.Dial(t.Context(), "no such channel"); !errs.Is(err, errs.Unsupported) {
		t.Errorf("dialling a channel that does not exist: %v", err)
	}
}

func testSecondDial(t *testing.T, h Harness) {
	_, m := boot(t, h)
	for _, ch := range []vmm.Channel{vmm.ChannelAgent, vmm.ChannelConsole} {
		first := m.console
		if ch == vmm.ChannelAgent {
			first = dialLines(t, m, ch)
		}
		second := dialLines(t, m, ch)
		first.expectEnd()
		second.Say("echo second")
		second.Expect(map[vmm.Channel]string{vmm.ChannelAgent: agentPrefix + "echo second", vmm.ChannelConsole: "echo: second"}[ch])
	}
}

func testAdoption(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.close(t)
	m.console.expectEnd()
	next := adopt(t, h, m)
	c := DialConsole(t, next)
	c.Say("echo adopted")
	c.Expect("echo: adopted")
	agent := dialLines(t, next, vmm.ChannelAgent)
	agent.Say("hello")
	agent.Expect(agentPrefix + "hello")
	if err := next.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if paused, err := next.Paused(t.Context()); err != nil || !paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
	if err := next.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Say("poweroff")
	requireExit(t, next, vmm.ExitShutdown)
	requireNothingLeft(t, h, m.spec)
}

// adopt adopts a closed machine with another driver.
func adopt(t *testing.T, h Harness, m *started) vmm.Machine {
	t.Helper()
	next, err := h.Driver(t).Adopt(t.Context(), m.Handle())
	if err != nil {
		t.Fatalf("cannot adopt: %v", err)
	}
	t.Cleanup(func() { end(t, h, next, m.spec) })
	if next.Handle() != m.Handle() {
		t.Errorf("the adopted machine has the handle %+v, want %+v", next.Handle(), m.Handle())
	}
	return next
}

func testAdoptedEnd(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		end  func(t *testing.T, m vmm.Machine)
		want vmm.ExitCause
	}{
		{"killed by us", func(t *testing.T, m vmm.Machine) {
			if err := m.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, vmm.ExitKilled},
		{"crashed", func(t *testing.T, m vmm.Machine) { h.Crash(t, m.Handle()) }, vmm.ExitCrashed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, m := start(t, h)
			m.close(t)
			next := adopt(t, h, m)
			c.end(t, next)
			requireExit(t, next, c.want)
			requireNothingLeft(t, h, m.spec)
		})
	}
}

func testForeignHandles(t *testing.T, h Harness) {
	_, m := start(t, h)
	m.close(t)
	for name, change := range map[string]func(*vmm.Handle){
		"another start time": func(h *vmm.Handle) { h.StartTime++ },
		"another pid":        func(h *vmm.Handle) { h.PID++ },
		"no pid":             func(h *vmm.Handle) { h.PID = 0 },
		"another program":    func(h *vmm.Handle) { h.Exe = "/bin/true" },
		"another boot":       func(h *vmm.Handle) { h.BootID = "another" },
		"another directory":  func(h *vmm.Handle) { h.Dir = filepath.Join(h.Dir, "other") },
		"another socket":     func(h *vmm.Handle) { h.Socket += "x" },
		"another version":    func(h *vmm.Handle) { h.Version = "0.0.1" },
		"another driver":     func(h *vmm.Handle) { h.Driver = "other" },
	} {
		handle := m.Handle()
		change(&handle)
		got, err := h.Driver(t).Adopt(t.Context(), handle)
		if !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: %v, want not found", name, err)
		}
		if got != nil {
			_ = got.Close()
		}
	}
	adopt(t, h, m) // the unchanged handle is adopted
}

func testList(t *testing.T, h Harness) {
	_, first := start(t, h)
	_, second := start(t, h)
	d := h.Driver(t)
	requireListed(t, d, h.Root, first.Handle(), second.Handle())
	requireListed(t, d, t.TempDir())
	requireListed(t, d, first.spec.Dir) // a directory is not below itself
	if err := first.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireListed(t, d, h.Root, second.Handle())
}

// requireListed checks that the list below root has exactly these machines.
func requireListed(t *testing.T, d vmm.Driver, root string, want ...vmm.Handle) {
	t.Helper()
	got, err := d.List(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	byPID := map[int]vmm.Handle{}
	for _, h := range got {
		byPID[h.PID] = h
	}
	if len(got) != len(want) {
		t.Errorf("the list below %s is %+v, want %d machines", root, got, len(want))
	}
	for _, w := range want {
		l := byPID[w.PID]
		l.Version = w.Version // a list may have none
		if l != w {
			t.Errorf("the list has %+v, want %+v", l, w)
		}
	}
}
