package guest_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

func goodUsage() wire.Usage {
	return wire.Usage{
		UptimeMillis: 1500, CPUBusyMillis: 700, Load: [3]float64{0.5, 1, 2},
		MemTotal: 100, MemAvailable: 60, DiskTotal: 1000, DiskFree: 900,
	}
}

// connected returns a session whose agent answers.
func connected(t *testing.T, a *fakeAgent) vm.Session {
	t.Helper()
	g, reports := connect(t, a.dial)
	t.Cleanup(a.answer(t))
	a.states <- state("done")
	<-reports
	return g
}

func TestUsage(t *testing.T) {
	a := newFakeAgent()
	a.usage = goodUsage()
	got, err := connected(t, a).Usage(t.Context())
	want := vm.GuestUsage{
		Uptime: 1500 * time.Millisecond, CPUBusy: 700 * time.Millisecond, Load: [3]float64{0.5, 1, 2},
		MemTotal: 100, MemUsed: 40, DiskTotal: 1000, DiskUsed: 100,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestInvalidUsageIsRefused(t *testing.T) {
	a := newFakeAgent()
	g := connected(t, a)
	for name, spoil := range map[string]func(*wire.Usage){
		"a negative uptime":           func(u *wire.Usage) { u.UptimeMillis = -1 },
		"a huge uptime":               func(u *wire.Usage) { u.UptimeMillis = math.MaxInt64 },
		"a huge CPU time":             func(u *wire.Usage) { u.CPUBusyMillis = math.MaxInt64 },
		"a negative load":             func(u *wire.Usage) { u.Load[2] = -1 },
		"a huge load":                 func(u *wire.Usage) { u.Load[0] = 1e300 },
		"more memory free than total": func(u *wire.Usage) { u.MemAvailable = u.MemTotal + 1 },
		"negative memory":             func(u *wire.Usage) { u.MemTotal, u.MemAvailable = -1, -2 },
		"a huge disk":                 func(u *wire.Usage) { u.DiskTotal = math.MaxInt64 },
		"more disk free than total":   func(u *wire.Usage) { u.DiskFree = u.DiskTotal + 1 },
	} {
		a.usage = goodUsage()
		spoil(&a.usage)
		if got, err := g.Usage(t.Context()); !errs.Is(err, errs.Unavailable) || got != (vm.GuestUsage{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestUsageDoesNotWaitForAnAgent(t *testing.T) {
	g, _ := connect(t, newFakeAgent().dial)
	began := time.Now()
	if _, err := g.Usage(context.WithoutCancel(t.Context())); !errs.HasCode(err, "agent_unavailable") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it waited for %v", took)
	}
}

func TestTrim(t *testing.T) {
	a := newFakeAgent()
	g, reports := connect(t, a.dial)
	if err := g.Trim(t.Context()); !errs.HasCode(err, "agent_unavailable") {
		t.Errorf("without an agent: %v", err)
	}
	t.Cleanup(a.answer(t))
	a.states <- state("done")
	<-reports
	if err := g.Trim(t.Context()); err != nil {
		t.Error(err)
	}
	a.refuse = wire.Refuse(wire.CodeFailed, "no discard")
	if err := g.Trim(t.Context()); !errs.HasCode(err, "agent_unavailable") || !strings.Contains(err.Error(), "could not trim") {
		t.Errorf("a refusal: %v", err)
	}
	a.refuse = wire.Refuse(wire.CodeUnknownOp, "trim?")
	if err := g.Trim(t.Context()); !errs.HasCode(err, "agent_too_old") {
		t.Errorf("of an old agent: %v", err)
	}
}

func TestErrorsOfDialHaveCodes(t *testing.T) {
	a := newFakeAgent()
	g := connected(t, a)
	for answer, code := range map[error]string{
		wire.Refuse(wire.CodeRefused, "closed"): "port_refused",
		wire.Refuse(wire.CodeBusy, "full"):      "guest_busy",
		wire.Refuse(wire.CodeUnknownOp, "what"): "agent_too_old",
		errors.New("no route"):                  "port_unreachable",
	} {
		a.refuse = answer
		if _, err := g.Dial(t.Context(), 80); !errs.HasCode(err, code) {
			t.Errorf("%v: got %v, want %s", answer, err, code)
		}
	}
}
