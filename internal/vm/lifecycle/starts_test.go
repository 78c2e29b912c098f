package lifecycle_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// The fake host has 4 CPUs.
const startsOfOne = 8

// All creates that are sent at once succeed, and few start at a time.
func TestStartsAtOnceAreBounded(t *testing.T) {
	w := newWorld(t)
	w.memMiB = 64 << 10
	const creates = 40
	var now, most atomic.Int32
	begun := make(chan struct{}, creates)
	proceed := make(chan struct{})
	w.calls.Before("Start", func() {
		n := now.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		begun <- struct{}{}
		<-proceed
		now.Add(-1)
	})
	var all sync.WaitGroup
	failures := make([]error, creates)
	for i := range creates {
		all.Go(func() { _, failures[i] = w.Create(t.Context(), owner, vm.CreateRequest{Name: fmt.Sprint("vm-", i)}) })
	}
	for range startsOfOne { // one after the other could not all be there at once
		<-begun
	}
	close(proceed)
	all.Wait()
	for _, err := range failures {
		if err != nil {
			t.Errorf("a create fails: %v", err)
		}
	}
	if got := most.Load(); got != startsOfOne {
		t.Errorf("%d started at a time, want %d", got, startsOfOne)
	}
}

// A request that could only wait very long is refused, and leaves nothing; other
// users and VMs that wait already are not affected.
func TestTooManyStartsAreRefused(t *testing.T) {
	w := newWorld(t)
	up := mustCreate(t, w, vm.CreateRequest{})
	var leave []func()
	for {
		free, err := w.QueueStart(owner)
		if err != nil {
			if !errs.HasCode(err, "too_many_starts") || errs.KindOf(err) != errs.TooMany {
				t.Errorf("got %v", err)
			}
			break
		}
		if leave = append(leave, free); len(leave) > 10_000 {
			t.Fatal("any number of starts can wait")
		}
	}
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); !errs.HasCode(err, "too_many_starts") {
		t.Errorf("a create gets %v", err)
	}
	if vms, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(vms) != 1 {
		t.Errorf("it left %v, %v", vms, err)
	}
	if _, err := w.Restart(t.Context(), access.Owner(owner), up.ID); !errs.HasCode(err, "too_many_starts") {
		t.Errorf("a restart gets %v", err)
	}
	if now := get(t, w, up.ID); now.State != vm.Running {
		t.Errorf("a restart that was refused leaves the VM %s", now.State)
	}
	w.driver.Reset(up.ID)
	w.awaitState(t, up.ID, vm.Running)
	if free, err := w.QueueStart("acc_other"); err != nil {
		t.Errorf("another user gets %v", err)
	} else {
		free()
	}
	for _, free := range leave {
		free()
	}
	mustCreate(t, w, vm.CreateRequest{})
}

// A VM that waits for its turn when hatchd ends is started by the next hatchd, with all
// that it was created with; it does not begin to boot at the end.
func TestStartsThatWaitGoToTheNextHatchd(t *testing.T) {
	w := newWorld(t)
	w.memMiB = 64 << 10
	begun, proceed := make(chan struct{}, startsOfOne+1), make(chan struct{})
	w.calls.Before("Start", func() { begun <- struct{}{}; <-proceed })
	var all sync.WaitGroup
	for range startsOfOne {
		all.Go(func() { _, _ = w.Create(t.Context(), owner, vm.CreateRequest{}) })
	}
	for range startsOfOne {
		<-begun
	}
	refused := make(chan error, 1)
	all.Go(func() {
		_, err := w.Create(t.Context(), owner, vm.CreateRequest{Name: "last"})
		refused <- err
	})
	last := func() (found []vm.VM) {
		vms, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{Name: "last"})
		if err != nil {
			t.Fatal(err)
		}
		return vms
	}
	for changed := w.AnyChanged(); len(last()) == 0; {
		select {
		case <-changed:
		case <-time.After(10 * time.Millisecond): // a VM that was just stored is not announced
		}
	}
	w.PostponeStarts()
	if err := <-refused; !errs.HasCode(err, "shutting_down") {
		t.Errorf("the create gets %v", err)
	}
	requireDown(t, last()[0], vm.Stopped, vm.AutostartRunning, "hatchd ended before")
	close(proceed)
	all.Wait()
	w.calls.Before("Start", nil)
	w.shut(t)
	w.serve(t)
	if v := w.awaitState(t, last()[0].ID, vm.Running); v.Autostart != vm.NoAutostart || !v.Provisioned {
		t.Errorf("it is back as %+v", v)
	}
}
