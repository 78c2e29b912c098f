package idle_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idle"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 10 * time.Minute

// world is a service over VMs that exist in memory only, with the real counting of uses.
type world struct {
	*idle.Service
	uses *reach.Reach

	mu      sync.Mutex
	vms     map[string]vm.VM
	samples map[string]vm.Sample // added to what is read
	fails   error                // of what takes VMs down
	lost    int                  // so many reads fail next
	deeds

	// Called, once, before a VM is taken down, read or sampled; may be nil.
	now, reading, sampling func()
}

// deeds are what was done to VMs.
type deeds struct {
	told    []string // why VMs were kept awake
	tries   int
	began   []time.Time // of the tries
	waited  bool        // a try waited for an operation in progress
	expired []machine.Action
}

// did returns what was done so far.
func (w *world) did() deeds {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deeds
}

// run calls f in a bubble whose clock goes on when all is idle, beside a running service.
func run(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{uses: reach.New(reach.Config{}), vms: map[string]vm.VM{}, samples: map[string]vm.Sample{}}
		w.Service = idle.New(w, w.uses, slog.New(slog.DiscardHandler))
		w.uses.OnQuiet(w.Quiet)
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); w.Run(ctx) }()
		f(t, w)
		end()
		<-ended
	})
}

// set stores a VM and tells the service.
func (w *world) set(v vm.VM) {
	w.mu.Lock()
	w.vms[v.ID] = v
	w.mu.Unlock()
	w.Changed(v)
}

func (w *world) start(id string) vm.VM {
	v := vm.VM{ID: id, State: vm.Running}
	v.Idle = machine.IdlePolicy{Timeout: timeout, Action: machine.ActionSleep, CPUPercent: 10, NetworkBytes: 1 << 20}
	w.set(v)
	return v
}

func (w *world) state(id string) vm.State {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vms[id].State
}

// before calls a function that is set, the first time.
func (w *world) before(f *func()) {
	w.mu.Lock()
	do := *f
	*f = nil
	w.mu.Unlock()
	if do != nil {
		do()
	}
}

// next sets a function that before calls.
func (w *world) next(f *func(), do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*f = do
}

// lose makes the next reads fail.
func (w *world) lose(times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = times
}

var errLost = errs.New(errs.Unavailable, errs.DatabaseUnavailable, "the database does not answer")

func (w *world) Get(_ context.Context, _ access.Scope, id string) (vm.VM, error) {
	w.before(&w.reading)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost > 0 {
		w.lost--
		return vm.VM{}, errLost
	}
	if v, ok := w.vms[id]; ok {
		return v, nil
	}
	return vm.VM{}, errs.New(errs.NotFound, "vm_not_found", "no such VM")
}

func (w *world) List(context.Context, access.Scope, vm.Filter) ([]vm.VM, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost > 0 {
		w.lost--
		return nil, "", errLost
	}
	var all []vm.VM
	for _, v := range w.vms {
		all = append(all, v)
	}
	return all, "", nil
}

func (w *world) TakeDown(ctx context.Context, id string, d vm.TakeDown) (bool, error) {
	w.mu.Lock()
	w.began, w.waited = append(w.began, time.Now()), w.waited || !d.NoWait
	w.mu.Unlock()
	w.before(&w.now)
	v, err := w.Get(ctx, access.Everyone, id)
	w.mu.Lock()
	w.tries++
	fails := w.fails
	w.mu.Unlock()
	if err != nil || fails != nil {
		return false, errors.Join(err, fails)
	}
	last, decided := w.uses.FallAsleepIfIdle(id, d.UnusedSince)
	if decided == nil || !d.Still(v) {
		return false, nil
	}
	defer decided()
	v.State = vm.Stopped
	if d.Action == machine.ActionSleep {
		v.State, v.Sleep = vm.Snapshotted, &vm.Sleep{Rule: d.Rule, Last: last}
	}
	v.StateReason = d.Reason(last)
	w.set(v)
	return true, nil
}

func (w *world) KeptAwake(_ context.Context, _, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, reason)
}

func (w *world) Sample(_ context.Context, v vm.VM) (vm.Sample, error) {
	w.before(&w.sampling)
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.samples[v.ID]
	s.At = time.Now()
	return s, nil
}

// fail makes the next attempts to take VMs down fail; nil: succeed.
func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fails = err
}

func (w *world) work(id string, s vm.Sample) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples[id] = s
}

func (w *world) Expire(_ context.Context, v vm.VM) error {
	w.mu.Lock()
	w.expired = append(w.expired, v.Expiry.Action)
	w.mu.Unlock()
	v.Expiry.At = time.Time{}
	w.set(v)
	return nil
}

// after lets time pass.
func after(d time.Duration) { <-time.After(d) }

func TestAVMSleepsWhenItWasNotUsed(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		if st := w.Status(v); st.InUse || st.Last.Cause != "start" || !st.SleepsAt.Equal(time.Now().Add(timeout)) {
			t.Errorf("it is %+v", st)
		}
		after(timeout - time.Second)
		if got := w.state("vm_a"); got != vm.Running {
			t.Errorf("too early: %s", got)
		}
		after(time.Second)
		if got := w.state("vm_a"); got != vm.Snapshotted {
			t.Errorf("it is %s", got)
		}
		after(24 * time.Hour)
		if w.did().tries != 1 {
			t.Errorf("tried %d times", w.did().tries)
		}
	})
}

func TestAUseKeepsAVMAwake(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		after(time.Minute)
		release := w.uses.Hold(t.Context(), "vm_a", reach.Exec)
		after(3 * timeout)
		if st := w.Status(v); w.state("vm_a") != vm.Running || !st.InUse || !st.SleepsAt.IsZero() {
			t.Errorf("in use: %s, %+v", w.state("vm_a"), st)
		}
		release()
		after(timeout - time.Second)
		if got := w.state("vm_a"); got != vm.Running {
			t.Errorf("just used: %s", got)
		}
		after(time.Second)
		if got := w.state("vm_a"); got != vm.Snapshotted || w.vms["vm_a"].Sleep.Last.Cause != "exec" {
			t.Errorf("it is %s: %s", got, w.vms["vm_a"].StateReason)
		}
	})
}

// What the guest does by itself is activity; status reads, which reach nothing, are not.
func TestTheGuestsOwnWork(t *testing.T) {
	for cause, s := range map[string]vm.Sample{
		"cpu":     {CPUTime: timeout / 10},
		"network": {NetworkBytes: 1 << 20},
		"command": {Guest: vm.GuestActivity{Commands: 1}},
		"":        {CPUTime: timeout/10 - time.Second, NetworkBytes: 1<<20 - 1},
	} {
		t.Run(cause, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				v := w.start("vm_a")
				synctest.Wait()
				w.work("vm_a", s)
				after(timeout)
				if got := w.state("vm_a"); (got == vm.Running) != (cause != "") {
					t.Fatalf("it is %s", got)
				}
				if cause == "" {
					return
				}
				if last := w.Status(v).Last; last.Cause != cause {
					t.Errorf("its last activity is %+v", last)
				}
				s.Guest.Commands = 0
				w.work("vm_a", s)
				after(timeout)
				if got := w.state("vm_a"); got != vm.Snapshotted {
					t.Errorf("later it is %s", got)
				}
			})
		})
	}
}

func TestAGuestKeepsItselfAwake(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		w.work("vm_a", vm.Sample{Guest: vm.GuestActivity{KeepAwakeUntil: time.Now().Add(time.Hour)}})
		after(time.Hour - time.Second)
		if got := w.state("vm_a"); got != vm.Running {
			t.Errorf("it is %s", got)
		}
		if last := w.Status(v).Last; last.Cause != "keep-awake" || last.At.After(time.Now()) {
			t.Errorf("its last activity is %+v", last)
		}
		w.work("vm_a", vm.Sample{}) // taken back
		after(timeout)
		if got := w.state("vm_a"); got != vm.Snapshotted {
			t.Errorf("later it is %s", got)
		}
	})
}

func TestThePolicyCanChange(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		after(time.Minute)
		v.Idle.Timeout = 2 * time.Minute
		w.set(v)
		after(time.Minute)
		if got := w.state("vm_a"); got != vm.Snapshotted {
			t.Errorf("with a shorter time: %s", got)
		}
		v = w.start("vm_b")
		v.Idle.Action = machine.ActionStop
		w.set(v)
		never := w.start("vm_c")
		never.Idle.Action = machine.ActionNone
		w.set(never)
		after(timeout)
		if b, c := w.state("vm_b"), w.state("vm_c"); b != vm.Stopped || c != vm.Running {
			t.Errorf("to be stopped: %s; to be left alone: %s", b, c)
		}
	})
}

// A sleep that fails is tried again, more and more rarely, and the VM says so.
func TestAFailedSleepBacksOff(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		w.fail(errs.New(errs.Unsupported, "sleep_unsupported", "cannot be saved"))
		after(timeout)
		synctest.Wait()
		if w.state("vm_a") != vm.Running || len(w.did().told) != 1 || w.did().told[0] != "running, though idle: it could not fall asleep: cannot be saved" {
			t.Errorf("it is %s, and says %q", w.state("vm_a"), w.did().told)
		}
		if st := w.Status(v); !st.SleepsAt.Equal(time.Now().Add(time.Minute)) {
			t.Errorf("it is tried again at %s", st.SleepsAt)
		}
		after(time.Minute + 2*time.Minute)
		if w.did().tries != 3 {
			t.Errorf("tried %d times", w.did().tries)
		}
		w.fail(errs.New(errs.TimedOut, "vm_busy", "busy")) // is none
		after(4 * time.Minute)
		w.fail(nil)
		after(10 * time.Second)
		if got := w.state("vm_a"); got != vm.Snapshotted || len(w.did().told) != 3 {
			t.Errorf("later it is %s, and said %q", got, w.did().told)
		}
	})
}

// A use that begins while the decision is made wins.
func TestAUseAtTheLastMoment(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.start("vm_a")
		w.next(&w.now, func() { w.uses.Hold(t.Context(), "vm_a", reach.SSH)() })
		after(timeout)
		if got := w.state("vm_a"); got != vm.Running {
			t.Errorf("it is %s", got)
		}
		after(timeout)
		if got := w.state("vm_a"); got != vm.Snapshotted || w.did().tries != 2 {
			t.Errorf("later it is %s, tried %d times", got, w.did().tries)
		}
	})
}

func TestExpiry(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := vm.VM{ID: "vm_a", State: vm.Snapshotted}
		v.Expiry = machine.Expiry{At: time.Now().Add(time.Hour), Action: machine.ActionDelete}
		w.set(v)
		after(30 * time.Minute)
		v.Expiry.At = v.Expiry.At.Add(time.Hour) // moved
		w.set(v)
		after(time.Hour + 29*time.Minute)
		if len(w.did().expired) != 0 {
			t.Errorf("too early: %v", w.did().expired)
		}
		after(time.Minute)
		if len(w.did().expired) != 1 || w.did().expired[0] != machine.ActionDelete {
			t.Errorf("done: %v", w.did().expired)
		}
		after(24 * time.Hour)
		if len(w.did().expired) != 1 {
			t.Errorf("done again: %v", w.did().expired)
		}
	})
}

// The idle time of VMs that run already when the service begins is counted from then on.
func TestTimersAreBackAfterARestart(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.start("vm_a")
		after(timeout - time.Minute)
		again := &world{uses: reach.New(reach.Config{}), vms: w.vms, samples: w.samples, lost: 3}
		again.Service = idle.New(again, again.uses, slog.New(slog.DiscardHandler))
		w.Gone("vm_a") // the earlier one has ended
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); again.Run(ctx) }()
		after(7 * time.Second) // the list was read at the fourth attempt
		after(timeout - time.Second)
		if got := again.state("vm_a"); got != vm.Running {
			t.Errorf("too early: %s", got)
		}
		after(time.Second)
		if got := again.state("vm_a"); got != vm.Snapshotted {
			t.Errorf("it is %s", got)
		}
		end()
		<-ended
	})
}
