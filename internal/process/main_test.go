package process_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake/guest"
	"github.com/hatchvm/hatch/internal/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	me   = "acc_me"
	myVM = "vm_mine"
)

// hostVM is a host with one VM.
type hostVM = guest.VM[process.Guest, process.Mode]

func newService(t *testing.T) (*process.Service, *guest.ProcessTable) {
	t.Helper()
	s, _, table := newCounted(t)
	return s, table
}

// newCounted is newService for tests of when a guest is in use. When the test
// ends, each use must have been released once.
func newCounted(t *testing.T) (*process.Service, *hostVM, *guest.ProcessTable) {
	t.Helper()
	table := guest.NewProcessTable()
	host := &hostVM{ID: myVM, OwnerID: me, Guest: table}
	t.Cleanup(func() {
		table.Close()
		if err := host.Check(); err != nil {
			t.Error(err)
		}
	})
	return process.New(host, noKeys{}), host, table
}

// noKeys is for requests without an Idempotency-Key.
type noKeys struct{}

func (noKeys) Remember(context.Context, string) error { return nil }
func (noKeys) Forget(context.Context, string) error   { return nil }

// open opens a stream of a spec that is known before.
func open(ctx context.Context, s *process.Service, spec process.Spec) (process.Stream, error) {
	return s.Open(ctx, access.Owner(me), myVM, func() (process.Spec, error) { return spec, nil })
}

func shell(line string) process.Spec { return process.Spec{Shell: line} }

// wantCode fails the test unless err has this kind and code.
func wantCode(t *testing.T, err error, kind errs.Kind, code string) {
	t.Helper()
	if !errs.Is(err, kind) || !errs.HasCode(err, code) {
		t.Fatalf("the error is %v; want %s with code %s", err, kind, code)
	}
}
