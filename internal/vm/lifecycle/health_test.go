package lifecycle_test

import (
	"context"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

const (
	unhealthy = "hatchd condition_changed vmm_healthy false"
	recovered = "hatchd condition_changed vmm_healthy true"
)

// beating returns a world whose machines are asked often. One that does not answer
// within limit counts as silent.
func beating(t *testing.T, limit time.Duration) *world {
	t.Helper()
	w := newWorld(t)
	w.configure(t, func() {
		w.heartbeat = live.Heartbeat{Interval: 10 * time.Millisecond, Limit: limit, Gap: time.Millisecond}
	})
	return w
}

func (w *world) requireReason(t *testing.T, id, want string) {
	t.Helper()
	v := get(t, w, id)
	if c := v.Conditions.VMM; c.Reason != want || v.State != vm.Running {
		t.Errorf("the VM is %s, and its machine is %+v; want it running with the reason %s", v.State, c, want)
	}
}

// nthCall returns a function to be called, and one that returns after its nth call.
func nthCall(n int32) (call func(), await func(*testing.T)) {
	var calls atomic.Int32
	done := make(chan struct{})
	call = func() {
		if calls.Add(1) == n {
			close(done)
		}
	}
	return call, func(t *testing.T) {
		t.Helper()
		select {
		case <-done:
		case <-time.After(waitTimeout):
			t.Fatalf("there were %d calls, want %d", calls.Load(), n)
		}
	}
}

func TestAGuestThatAFullDiskHaltsGoesOnOnceThereIsRoom(t *testing.T) {
	w := beating(t, time.Minute)
	var room atomic.Bool
	asked, often := nthCall(3)
	w.configure(t, func() {
		w.hasRoom = func() bool { asked(); return room.Load() }
	})
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.Halt(v.ID, vmm.HaltNoSpace)
	w.untilTold(t, v.ID, unhealthy, 1)
	w.requireReason(t, v.ID, vm.ReasonHostDiskFull)
	before := w.calls.Count("Resume")
	often(t)
	if now := w.calls.Count("Resume"); now != before {
		t.Errorf("it was resumed %d times while the disk was full", now-before)
	}
	w.driver.Unhalt(v.ID)
	room.Store(true)
	w.untilTold(t, v.ID, recovered, 1)
	w.requireReason(t, v.ID, "Answering")
}

// TestAGuestThatIsHaltedAgainIsToldOnce resumes a guest whose write fails each time.
func TestAGuestThatIsHaltedAgainIsToldOnce(t *testing.T) {
	w := beating(t, time.Minute)
	v := mustCreate(t, w, vm.CreateRequest{})
	resumed, often := nthCall(5)
	w.calls.Before("Resume", resumed)
	w.driver.Halt(v.ID, vmm.HaltNoSpace)
	often(t)
	w.driver.Unhalt(v.ID)
	w.untilTold(t, v.ID, recovered, 1)
	if story := strings.Join(w.story(t, v.ID), "\n"); strings.Count(story, unhealthy) != 1 {
		t.Errorf("it was told several times:\n%s", story)
	}
}

func TestAPausedGuestStaysPaused(t *testing.T) {
	w := beating(t, time.Minute)
	v, other := mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	resumed := w.calls.Count("Resume")
	for i := range 3 { // another guest shows that time passes
		w.driver.FailDisk(other.ID, 1)
		w.driver.Halt(other.ID, vmm.HaltInternal)
		w.untilTold(t, other.ID, unhealthy, i+1)
		if _, err := w.Restart(t.Context(), access.Owner(owner), other.ID); err != nil {
			t.Fatal(err)
		}
	}
	if now := get(t, w, v.ID); now.State != vm.Paused || w.calls.Count("Resume") > resumed+3 {
		t.Errorf("the paused VM is %s; there were %d resumes", now.State, w.calls.Count("Resume")-resumed)
	}
}

func TestErrorsOfADiskAreTold(t *testing.T) {
	w := beating(t, time.Minute)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.FailDisk(v.ID, 3)
	w.untilTold(t, v.ID, unhealthy, 1)
	w.requireReason(t, v.ID, vm.ReasonDiskErrors)
}

func TestAVMMThatHangsIsTold(t *testing.T) {
	w := beating(t, 50*time.Millisecond)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.Hang(v.ID)
	w.untilTold(t, v.ID, unhealthy, 1)
	w.requireReason(t, v.ID, vm.ReasonUnresponsive)
	w.driver.Unhang(v.ID)
	w.untilTold(t, v.ID, recovered, 1)
}

func TestAVMMThatHangsCanBeStoppedAndDeleted(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *world, vm.VM){
		"stopped": func(t *testing.T, w *world, v vm.VM) {
			t.Helper()
			stopped, err := w.Stop(t.Context(), access.Owner(owner), v.ID)
			if err != nil || stopped.State != vm.Stopped || !reflect.DeepEqual(stopped.Conditions, vm.Conditions{}) {
				t.Errorf("after the stop it is %s (%s), %+v: %v", stopped.State, stopped.StateReason, stopped.Conditions, err)
			}
			if w.calls.Count("Shutdown") != 1 || w.calls.Count("PowerButton") != 0 {
				t.Errorf("its agent was asked %d times, its VMM %d times; want the agent alone, once",
					w.calls.Count("Shutdown"), w.calls.Count("PowerButton"))
			}
		},
		"deleted": func(t *testing.T, w *world, v vm.VM) {
			t.Helper()
			if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Error(err)
			}
		},
	} {
		for where, restarted := range map[string]bool{"at once": false, "by the next hatchd": true} {
			t.Run(name+" "+where, func(t *testing.T) {
				w := beating(t, 50*time.Millisecond)
				v, other := mustCreate(t, w, vm.CreateRequest{}), mustCreate(t, w, vm.CreateRequest{})
				w.driver.Hang(v.ID)
				if restarted {
					w.shut(t)
					w.serve(t)
					w.requireReason(t, other.ID, "Answering")
				}
				w.untilTold(t, v.ID, unhealthy, 1)
				end(t, w, v)
				if machines, err := w.driver.List(context.Background(), "/"); err != nil || len(machines) != 1 {
					t.Errorf("the machines are %v, %v; want only that of %s", machines, err, other.ID)
				}
			})
		}
	}
}

// TestAHungVMMIsAdoptedLate ends hatchd between a pause and the resume that was to
// follow, and lets the VMM hang during the adoption.
func TestAHungVMMIsAdoptedLate(t *testing.T) {
	w := beating(t, 50*time.Millisecond)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	m, _ := w.machine(t, v)
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.driver.Hang(v.ID)
	w.serve(t)
	w.untilTold(t, v.ID, unhealthy, 1)
	w.driver.Unhang(v.ID)
	w.untilTold(t, v.ID, recovered, 1)
	if paused, err := m.Paused(t.Context()); paused || err != nil {
		t.Errorf("its guest is paused: %v, %v", paused, err)
	}
}
