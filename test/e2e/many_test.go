//go:build system

package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testTwenty creates twenty VMs at the same time; every second one is a clone of a warm
// guest.
func testTwenty(t *testing.T, w *world) {
	const many = 20
	image := w.registerCopy(t, minimalID, "img_twenty")
	w.warm(t, image.ID, "--memory", fmt.Sprint(minimalMem), "--disk", fmt.Sprint(smallDisk))
	before := w.traces(t)
	began := time.Now()
	vms, err := each(many, func(ctx context.Context, i int) (api.VM, error) {
		body := minimal()
		body.ImageID = []string{minimalID, image.ID}[i%2]
		return w.client.CreateVM(ctx, body, client.CreateOptions{})
	})
	defer func() {
		for _, v := range vms {
			if v.ID != "" {
				w.cleanUp(t, v.ID)
			}
		}
	}()
	if err != nil {
		t.Fatalf("not all could be created: %v", err)
	}
	took(t, "twenty creates", began)
	requireDistinct(t, vms)
	if got := len(vmms(t)) - len(w.guestsRunning(t)); got != many {
		t.Errorf("%d VMMs run for %d VMs", got, many)
	}
	if _, err := each(many, func(ctx context.Context, i int) (api.VM, error) {
		return w.client.WaitVM(ctx, vms[i].ID, "agent", readyLimit)
	}); err != nil {
		t.Fatalf("not all agents answer: %v", err)
	}
	took(t, "until all agents answer", began)
	began = time.Now()
	if _, err := each(many, func(ctx context.Context, i int) (api.VM, error) {
		return api.VM{}, w.client.DeleteVM(ctx, vms[i].ID)
	}); err != nil {
		t.Fatalf("not all could be deleted: %v", err)
	}
	took(t, "twenty deletes", began)
	w.requireTraces(t, before)
	if err := w.client.DeleteImage(t.Context(), image.ID); err != nil {
		t.Error(err)
	}
}

// guestsRunning returns the shared guests that run.
func (w *world) guestsRunning(t *testing.T) []api.VM {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var running []api.VM
	for _, g := range w.guests {
		<-g.ready
		if g.vm.ID == "" {
			continue
		}
		if v := w.get(t, g.vm.ID); v.State == api.StateRunning {
			running = append(running, v)
		}
	}
	return running
}

// each calls do many times at once.
func each(many int, do func(ctx context.Context, i int) (api.VM, error)) ([]api.VM, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	vms, errs := make([]api.VM, many), make([]error, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() { vms[i], errs[i] = do(ctx, i) })
	}
	all.Wait()
	return vms, errors.Join(errs...)
}
