package live

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// fakeMachine is a machine without a process. Its health comes from answers.
type fakeMachine struct {
	vmm.Machine
	changed chan struct{}
	exited  chan struct{}
	answers chan healthAnswer
}

func newFakeMachine() *fakeMachine {
	return &fakeMachine{changed: make(chan struct{}), exited: make(chan struct{}), answers: make(chan healthAnswer)}
}

func (m *fakeMachine) HealthChanged() <-chan struct{} { return m.changed }

func (m *fakeMachine) Exited() <-chan struct{} { return m.exited }

func (m *fakeMachine) Health(ctx context.Context) (vmm.Health, error) {
	select {
	case a := <-m.answers:
		return a.health, a.err
	case <-ctx.Done():
		return vmm.Health{}, ctx.Err()
	}
}

func (m *fakeMachine) Close() error { return nil }

func TestReportsWithoutEndDoNotPostponeTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{Heartbeat: Heartbeat{Interval: time.Hour, Gap: time.Second}})
		fake := newFakeMachine()
		due := make(chan bool)
		go func() { due <- r.awaitBeat(&Machine{Machine: fake}) }()
		defer close(fake.exited)
		for range 10 {
			select {
			case fake.changed <- struct{}{}:
				<-time.After(time.Second * 2 / 3)
			case ok := <-due:
				if !ok {
					t.Error("watching is over")
				}
				return
			}
		}
		t.Error("a guest that reports all the time is not asked")
		go func() { <-due }()
	})
}

func TestAVMMIsAskedOnceMoreBeforeItCountsAsSilent(t *testing.T) {
	for name, c := range map[string]struct {
		answer *healthAnswer
		want   bool
	}{
		"no answer":    {nil, true},
		"an answer":    {&healthAnswer{}, false},
		"a refusal":    {&healthAnswer{err: errors.New("refused")}, false},
		"out of files": {&healthAnswer{err: syscall.EMFILE}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFakeMachine()
				fake.answers = make(chan healthAnswer, 1)
				if c.answer != nil {
					fake.answers <- *c.answer
				}
				m := &Machine{Machine: fake}
				m.silent.Store(true)
				if got := m.Silent(t.Context()); got != c.want {
					t.Errorf("it is silent: %t, want %t", got, c.want)
				}
			})
		})
	}
}

func TestOnlyRequestsWithoutAnAnswerCountAsMissed(t *testing.T) {
	silent := errs.New(errs.Unavailable, "vmm_silent", "no answer")
	p := &pulse{}
	for i, c := range []struct {
		err  error
		told bool
	}{
		{errors.New("refused"), false}, {syscall.EMFILE, false}, {silent, false}, {syscall.EMFILE, false}, {silent, true},
	} {
		if h, ok := p.add(healthAnswer{err: c.err}); ok != c.told || h.Silent != errors.Is(c.err, silent) {
			t.Errorf("answer %d, %v: %+v, %t; want %t", i, c.err, h, ok, c.told)
		}
	}
}

// silence waits for the answer to a request that gets none, and returns how long it took
// until that was told. busy is called for each step.
func silence(t *testing.T, busy func(asked int) bool) (told time.Duration) {
	t.Helper()
	asked := 0
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{Heartbeat: Heartbeat{Limit: 8 * time.Second}})
		m := &Machine{Machine: newFakeMachine()}
		r.machines["vm_1"] = m
		closing, began := make(chan struct{}), time.Now()
		r.Handle(Handlers{
			Checked: func(_ context.Context, _ string, _ *Machine, h vm.Health, _ bool) error {
				if h.Silent && told == 0 {
					told = time.Since(began)
					close(closing)
				}
				return nil
			},
			Busy: func(string) bool {
				asked++
				return busy(asked)
			},
		}, nil, closing)
		p := &pulse{Machine: m, id: "vm_1", retries: backoff.New(time.Second, time.Second)}
		if r.awaitHealth(t.Context(), p, make(chan healthAnswer)) {
			t.Error("there was an answer")
		}
	})
	return told
}

func TestSilenceDuringAnOperationDoesNotCount(t *testing.T) {
	told := silence(t, func(asked int) bool { return asked <= 100 })
	if want := 208 * time.Second; told != want {
		t.Errorf("the silence is told after %s, want %s", told, want)
	}
}

// TestAFreezeOfTheHostDoesNotCount lets hatchd stand still for an hour, just after it
// has begun to wait.
func TestAFreezeOfTheHostDoesNotCount(t *testing.T) {
	told := silence(t, func(asked int) bool {
		if asked == 1 {
			<-time.After(time.Hour)
		}
		return false
	})
	if want := 2*time.Second + time.Hour + 6*time.Second; told != want {
		t.Errorf("the silence is told after %s, want %s", told, want)
	}
}

// TestADroppedMachineIsNotWatched drops a machine whose process does not end.
func TestADroppedMachineIsNotWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{Heartbeat: DefaultHeartbeat})
		r.Handle(Handlers{}, func(watch func()) { go watch() }, make(chan struct{}))
		m := &Machine{Machine: newFakeMachine(), dropped: make(chan struct{})}
		r.machines["vm_1"] = m
		r.Watch("vm_1", m)
		synctest.Wait()
		r.Remove("vm_1", m)
	}) // which waits for the watchers
}
