package process_test

import (
	"context"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/process/processtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	me   = "acc_me"
	myVM = "vm_mine"
)

// oneGuest is a host with one VM.
type oneGuest struct {
	guest  process.Guest
	asleep atomic.Bool
}

func (o *oneGuest) ProcessGuest(ctx context.Context, owner, vmID string) (process.Guest, error) {
	if owner == me && vmID == myVM {
		o.asleep.Store(false)
	}
	return o.AwakeProcessGuest(ctx, owner, vmID)
}

func (o *oneGuest) AwakeProcessGuest(_ context.Context, owner, vmID string) (process.Guest, error) {
	switch {
	case owner != me || vmID != myVM:
		return nil, errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", vmID)
	case o.asleep.Load():
		return nil, errs.New(errs.Conflict, "vm_not_running", "cannot look inside VM %s: it is snapshotted", vmID).WithHint("wake it first")
	}
	return o.guest, nil
}

func newService(t *testing.T) (*process.Service, *processtest.Guest) {
	t.Helper()
	guest := processtest.New()
	t.Cleanup(guest.Close)
	return process.New(&oneGuest{guest: guest}), guest
}

func shell(line string) process.Spec { return process.Spec{Shell: line} }

// wantCode fails the test unless err has this kind and code.
func wantCode(t *testing.T, err error, kind errs.Kind, code string) {
	t.Helper()
	if !errs.Is(err, kind) || !errs.HasCode(err, code) {
		t.Fatalf("the error is %v; want %s with code %s", err, kind, code)
	}
}
