package guest_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestActivity(t *testing.T) {
	a := newFakeAgent()
	g := connected(t, a)
	for _, told := range []wire.Activity{{}, {Commands: 3}, {KeepAwakeMillis: wire.MaxKeepAwake.Milliseconds(), Commands: 1}} {
		a.activity = told
		began := time.Now()
		got, err := g.Activity(t.Context())
		ended := time.Now()
		if err != nil || got.Commands != told.Commands || got.KeepAwakeUntil.IsZero() != (told.KeepAwakeMillis == 0) {
			t.Errorf("%+v became %+v, %v", told, got, err)
		}
		left := time.Duration(told.KeepAwakeMillis) * time.Millisecond
		if left > 0 && (got.KeepAwakeUntil.Before(began.Add(left)) || got.KeepAwakeUntil.After(ended.Add(left))) {
			t.Errorf("%v from now is %v, not from %v to %v", left, got.KeepAwakeUntil, began, ended)
		}
	}
}

func TestInvalidActivityIsRefused(t *testing.T) {
	a := newFakeAgent()
	g := connected(t, a)
	for name, told := range map[string]wire.Activity{
		"a negative time":           {KeepAwakeMillis: -1},
		"a time beyond the limit":   {KeepAwakeMillis: wire.MaxKeepAwake.Milliseconds() + 1},
		"a time beyond all limits":  {KeepAwakeMillis: math.MaxInt64},
		"a negative number":         {Commands: -1},
		"a number beyond the limit": {Commands: math.MaxInt},
	} {
		a.activity = told
		if got, err := g.Activity(t.Context()); !errs.Is(err, errs.Unavailable) || got != (vm.GuestActivity{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestActivityDoesNotWaitForAnAgent(t *testing.T) {
	g, _ := connect(t, newFakeAgent().dial)
	if _, err := g.Activity(context.WithoutCancel(t.Context())); !errs.HasCode(err, "agent_unavailable") {
		t.Errorf("got %v", err)
	}
}

// agentWithoutActivity is an agent that has the operations of the first version only.
type agentWithoutActivity struct{ wire.Handler }

func TestOldAgentReportsNoActivity(t *testing.T) {
	a := newFakeAgent()
	g, reports := connect(t, a.dial)
	t.Cleanup(serveNext(a.conns, agentWithoutActivity{a}))
	a.states <- state("done")
	<-reports
	if got, err := g.Activity(t.Context()); err != nil || got != (vm.GuestActivity{}) {
		t.Errorf("got %+v, %v", got, err)
	}
}
