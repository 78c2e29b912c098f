package guest_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

var copyIdentity = vm.Identity{
	InstanceID: "vm_copy", Hostname: "copy", MAC: net.HardwareAddr{2, 0xfc, 0, 0, 0, 11},
	Address: netip.MustParsePrefix("172.16.0.11/24"), Gateway: netip.MustParseAddr("172.16.0.1"),
}

// copiedAgent is an agent in a copy: it answers with what the test sends.
type copiedAgent struct {
	*fakeAgent
	told    chan wire.Identity
	answers chan recastAnswer
}

type recastAnswer struct {
	self wire.Self
	err  error
}

func (a *copiedAgent) Recast(ctx context.Context, now time.Time, seed []byte, as wire.Identity) (wire.Self, error) {
	if len(seed) == 0 || time.Since(now) > time.Minute {
		return wire.Self{}, errors.New("no seed, or a wrong time")
	}
	a.told <- as
	select {
	case answer := <-a.answers:
		return answer.self, answer.err
	case <-ctx.Done():
		return wire.Self{}, ctx.Err()
	}
}

// serve serves the next connection and returns what cuts it off.
func (a *copiedAgent) serve(t *testing.T) (cut func()) {
	t.Helper()
	conn := <-a.conns
	done := make(chan struct{})
	go func() {
		defer close(done)
		if server, err := wire.Accept(conn); err == nil {
			_ = server.Run(context.Background(), a)
		}
	}()
	return func() {
		_ = conn.Close()
		<-done
	}
}

func recast(t *testing.T, as vm.Identity) (*copiedAgent, vm.Guest, <-chan *vm.GuestReport) {
	t.Helper()
	a := &copiedAgent{newFakeAgent(), make(chan wire.Identity, 8), make(chan recastAnswer, 8)}
	reports := make(chan *vm.GuestReport, 64)
	g := guest.New(slog.New(slog.DiscardHandler)).Recast("vm_copy", a.dial, func(r *vm.GuestReport) { reports <- r }, as)
	t.Cleanup(func() { _ = g.Close() })
	return a, g, reports
}

func itself() recastAnswer {
	return recastAnswer{self: wire.Self{Hostname: "copy", MAC: "02:fc:00:00:00:0b", Address: copyIdentity.Address, MachineID: "m"}}
}

func TestCopyIsToldUntilItHasConfirmed(t *testing.T) {
	a, g, reports := recast(t, copyIdentity)
	cut := a.serve(t)
	told := <-a.told
	if told.InstanceID != "vm_copy" || told.Hostname != "copy" || told.CloudInit || *told.NIC != (wire.NIC{
		MAC: "02:fc:00:00:00:0b", Address: copyIdentity.Address, Gateway: copyIdentity.Gateway,
	}) {
		t.Errorf("told %+v, %+v", told, told.NIC)
	}
	cut() // before it has answered

	cut = a.serve(t)
	if again := <-a.told; again.Birth == "" || again.Birth != told.Birth {
		t.Errorf("told again of the birth %q, first of %q", again.Birth, told.Birth)
	}
	a.states <- state("done") // a report is no confirmation
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Confirmed(ctx); !errs.Is(err, errs.Unavailable) {
		t.Errorf("before it has answered: %v", err)
	}
	if len(reports) > 0 {
		t.Error("it was asked for reports before it was itself")
	}
	a.answers <- itself()
	if err := g.Confirmed(t.Context()); err != nil {
		t.Errorf("after it has answered: %v", err)
	}
	<-reports
	cut()
	<-reports // lost

	cut = a.serve(t)
	defer cut()
	a.states <- state("done")
	<-reports
	if len(a.told) > 0 {
		t.Error("it was told again although it had confirmed")
	}
}

func TestCopyThatCannotBeItselfSaysWhy(t *testing.T) {
	a, g, reports := recast(t, copyIdentity)
	cut := a.serve(t)
	a.answers <- recastAnswer{err: errors.New("network: there is no\x1b interface")}
	err := g.Confirmed(t.Context())
	if !errs.HasCode(err, "recast_failed") || !errs.Is(err, errs.Internal) || !strings.Contains(err.Error(), "there is no\ufffd interface") {
		t.Errorf("got %v", err)
	}
	if len(reports) > 0 {
		t.Error("it was asked for reports")
	}
	cut()
	cut = a.serve(t)
	defer cut()
	a.answers <- itself()
	<-a.told
	<-a.told
	a.states <- state("done")
	<-reports
	if err := g.Confirmed(t.Context()); err != nil {
		t.Errorf("once it could: %v", err)
	}
}

func TestCopyThatIsAnotherIsRefused(t *testing.T) {
	for what, spoil := range map[string]func(*wire.Self){
		"hostname": func(s *wire.Self) { s.Hostname = "parent" },
		"MAC":      func(s *wire.Self) { s.MAC = "02:fc:00:00:00:0a" },
		"address":  func(s *wire.Self) { s.Address = netip.MustParsePrefix("172.16.0.10/24") },
	} {
		a, g, _ := recast(t, copyIdentity)
		cut := a.serve(t)
		answer := itself()
		spoil(&answer.self)
		a.answers <- answer
		if err := g.Confirmed(t.Context()); !errs.HasCode(err, "recast_failed") || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		_ = g.Close()
		cut()
	}
}

func TestCopyWithoutANetwork(t *testing.T) {
	for _, setup := range []vm.Setup{vm.SetupNone, vm.SetupKeys, vm.SetupAnew} {
		a, g, _ := recast(t, vm.Identity{InstanceID: "vm_copy", Hostname: "copy", Setup: setup})
		cut := a.serve(t)
		a.answers <- recastAnswer{self: wire.Self{Hostname: "copy"}}
		if err := g.Confirmed(t.Context()); err != nil {
			t.Error(err)
		}
		if told := <-a.told; told.NIC != nil || told.CloudInit != (setup == vm.SetupAnew) || told.SSHKeys != (setup == vm.SetupKeys) {
			t.Errorf("told %+v", told)
		}
		_ = g.Close()
		cut()
	}
}

func TestCopyWithAnOldAgentIsUnsupported(t *testing.T) {
	a, g, _ := recast(t, copyIdentity)
	defer a.answer(t)() // by an agent that does not know of copies
	if err := g.Confirmed(t.Context()); !errs.Is(err, errs.Unsupported) || !errs.HasCode(err, "agent_too_old") {
		t.Errorf("got %v", err)
	}
}

func TestConfirmedOfAGuestThatIsNoCopy(t *testing.T) {
	g, _ := connect(t, newFakeAgent().dial)
	if err := g.Confirmed(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestConfirmedOfASessionThatIsClosed(t *testing.T) {
	_, g, _ := recast(t, copyIdentity)
	_ = g.Close()
	if err := g.Confirmed(t.Context()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
}
