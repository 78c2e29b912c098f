package guest_test

import (
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// requireClock checks that the agent was told the time, count times since began.
func (a *fakeAgent) requireClock(t *testing.T, began time.Time, count int) {
	t.Helper()
	if got := len(a.clocks); got != count {
		t.Fatalf("the agent was told the time %d times, want %d", got, count)
	}
	for range count {
		if at := <-a.clocks; at.Before(began) || at.After(time.Now()) {
			t.Errorf("the agent was told that it is %s", at)
		}
	}
}

func TestSetClock(t *testing.T) {
	began := time.Now()
	a := newFakeAgent()
	g, reports := connect(t, a.dial)
	defer a.answer(t)()
	a.states <- state("done")
	<-reports
	a.requireClock(t, began, 0)
	if err := g.SetClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.requireClock(t, began, 1)
	a.refuse = errs.New(errs.Internal, "", "no permission")
	if err := g.SetClock(t.Context()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("an agent that cannot set the clock: %v", err)
	}
}

// A long pause ends the session, so no agent answers when the guest is resumed.
func TestTheClockIsSetBeforeTheNextSession(t *testing.T) {
	began := time.Now()
	a := newFakeAgent()
	g, reports := connect(t, a.dial)
	if err := g.SetClock(t.Context()); err != nil {
		t.Fatalf("without an agent: %v", err)
	}
	cut := a.answer(t)
	a.states <- state("running")
	<-reports
	a.requireClock(t, began, 1)

	cut()
	if r := <-reports; r != nil {
		t.Fatalf("the loss was not reported: %+v", r)
	}
	cut = a.answer(t) // of the same boot: the guest may have stood still
	a.states <- state("done")
	<-reports
	a.requireClock(t, began, 1)

	cut()
	<-reports
	a.bootID.Store("another boot")
	defer a.answer(t)()
	a.states <- state("running")
	<-reports
	a.requireClock(t, began, 0)
}
