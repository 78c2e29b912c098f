package vmmtest

import (
	"context"
	"errors"
	"testing"

	"github.com/hatchvm/hatch/internal/vmm"
)

func testHealth(t *testing.T, h Harness) {
	_, m := boot(t, h)
	requireHalt(t, m, vmm.NotHalted)
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireHalt(t, m, vmm.HaltPaused)
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireHalt(t, m, vmm.NotHalted)
}

func requireHalt(t *testing.T, m vmm.Machine, want vmm.Halt) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if got, err := m.Health(ctx); err != nil || got != (vmm.Health{Halt: want}) {
		t.Errorf("the health is %+v, %v; want the halt %q", got, err, want)
	}
}

func testHang(t *testing.T, h Harness) {
	_, m := boot(t, h)
	unhang := h.Hang(t, m.Handle())
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := m.Health(ctx)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the health of a VMM that hangs: %v", err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := m.Health(t.Context())
		answered <- err
	}()
	unhang()
	if err := <-answered; err != nil {
		t.Errorf("the health of a VMM that has hung: %v", err)
	}
	requireHalt(t, m, vmm.NotHalted)
}

func testAdoptedHang(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.close(t)
	h.Hang(t, m.Handle())
	next := adopt(t, h, m)
	if err := next.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireExit(t, next, vmm.ExitKilled)
	requireNothingLeft(t, h, m.spec)
}
