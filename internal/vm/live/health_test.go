package live

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
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
				time.Sleep(time.Second * 2 / 3)
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
