package e2b

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// timekeeper lets the time of a sandbox stand still while it sleeps, and begin anew when
// it runs again, also if a command of Hatch's own, or the host, has put it to sleep or woken
// it.
type timekeeper struct {
	vms VMs
	log *slog.Logger

	changed chan struct{} // capacity 1; full when due may have something

	mu   sync.Mutex
	due  map[string]struct{} // ids of VMs to look at
	held map[string]int      // VMs whose time a request moves itself
}

// wrong reports whether the time of a sandbox runs though it sleeps, or stands still though
// it runs.
func wrong(v vm.VM) bool {
	if v.Sandbox == nil || v.Intent == vm.IntentDeleted || v.Expiry.TTL == 0 {
		return false
	}
	runs := !v.Expiry.At.IsZero()
	return v.State == vm.Snapshotted && runs || v.State == vm.Running && !runs
}

// changedVM notes a sandbox whose time is wrong.
func (t *timekeeper) changedVM(v vm.VM) {
	if !wrong(v) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held[v.ID] == 0 {
		t.note(v.ID)
	}
}

// note adds a VM to those that are due. Precondition: the lock is held.
func (t *timekeeper) note(vmID string) {
	t.due[vmID] = struct{}{}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// hold leaves the time of a VM to the caller until release is called, after which it is
// looked at.
func (t *timekeeper) hold(vmID string) (release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held[vmID]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.held[vmID]--; t.held[vmID] == 0 {
			delete(t.held, vmID)
			t.note(vmID)
		}
	}
}

// retryInterval is the wait before what has failed is tried again.
const retryInterval = 5 * time.Second

// run looks at all sandboxes, and then at those that change, until ctx is done.
func (t *timekeeper) run(ctx context.Context) {
	for !t.noteAll(ctx) {
		if !backoff.Pause(ctx, retryInterval) {
			return
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.changed:
		}
		failed := false
		for _, id := range t.take() {
			if err := t.correct(ctx, id); err != nil && ctx.Err() == nil {
				t.log.Warn("cannot set the time of a sandbox", logkey.VM, id, logkey.Error, err)
				t.mu.Lock()
				t.note(id)
				t.mu.Unlock()
				failed = true
			}
		}
		if failed && !backoff.Pause(ctx, retryInterval) {
			return
		}
	}
}

// noteAll notes all sandboxes whose time is wrong, and reports whether it could.
func (t *timekeeper) noteAll(ctx context.Context) bool {
	for after := ""; ; {
		page, next, err := t.vms.List(ctx, access.Everyone, vm.Filter{HasLabels: []string{label}, Limit: pageOfVMs, After: after})
		if err != nil {
			if ctx.Err() == nil {
				t.log.Warn("cannot list sandboxes", logkey.Error, err)
			}
			return false
		}
		for _, v := range page {
			t.changedVM(v)
		}
		if after = next; after == "" {
			return true
		}
	}
}

func (t *timekeeper) take() (ids []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.due {
		ids = append(ids, id)
	}
	clear(t.due)
	return ids
}

// correct sets the time of a sandbox right, as it is now.
func (t *timekeeper) correct(ctx context.Context, id string) error {
	v, err := t.vms.Get(ctx, access.Everyone, id)
	if err == nil && wrong(v) {
		_, err = t.vms.Update(ctx, access.Everyone, id, func(v *vm.VM) error {
			if wrong(*v) {
				v.Expiry = righted(*v)
			}
			return nil
		})
	}
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func righted(v vm.VM) machine.Expiry {
	e := v.Expiry
	if v.State == vm.Running {
		return e.Begun(vm.Now())
	}
	e.At = time.Time{}
	return e
}
