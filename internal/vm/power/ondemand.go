package power

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/operation"
)

// wakeBackoff is how long a VM that did not wake is not tried again on demand.
const wakeBackoff = 30 * time.Second

// WakeOnDemand wakes a sleeping VM for an unauthenticated caller that wants to
// reach it, such as an SSH connection. It returns at once when the VM runs; see
// WakeIfAsleep for the rest.
func (s *Service) WakeOnDemand(ctx context.Context, id string) error {
	if s.Live.Holds(id) {
		return nil
	}
	v, err := s.Store.VM(ctx, access.Everyone, id)
	if err != nil || !v.Asleep() {
		return err
	}
	return s.WakeIfAsleep(ctx, id)
}

// WakeIfAsleep wakes a VM if it sleeps, after any sleep or wake in progress. After
// a failed wake it returns the same error, without an attempt or an event, until
// wakeBackoff has passed.
//
// Unlike the other functions of power it takes the VM's lock itself.
func (s *Service) WakeIfAsleep(ctx context.Context, id string) error {
	_, err := s.Runner.Run(ctx, operation.Op{
		Scope: access.Everyone, VMID: id, Name: "wake",
		Skip: func(v vm.VM) (bool, error) {
			if !v.Asleep() {
				return true, nil
			}
			return false, s.wakes.recent(id)
		},
		Do: func(ctx context.Context, v vm.VM) (vm.VM, error) {
			v, err := s.Wake(ctx, v)
			if err != nil {
				s.wakes.failed(id, err)
			}
			return v, err
		},
	})
	return err
}

// wakeFailures are the last failed wakes on demand, by VM id.
type wakeFailures struct {
	mu sync.Mutex
	by map[string]wakeFailure // entries past wakeBackoff go with the next failure
}

type wakeFailure struct {
	at  time.Time
	err error
}

func newWakeFailures() *wakeFailures { return &wakeFailures{by: map[string]wakeFailure{}} }

// recent returns the last error of a VM if it is younger than wakeBackoff.
func (w *wakeFailures) recent(id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last, ok := w.by[id]; ok && time.Since(last.at) < wakeBackoff {
		return last.err
	}
	return nil
}

func (w *wakeFailures) failed(id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.by, func(_ string, f wakeFailure) bool { return time.Since(f.at) >= wakeBackoff })
	w.by[id] = wakeFailure{time.Now(), err}
}

func (w *wakeFailures) succeeded(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.by, id)
}
