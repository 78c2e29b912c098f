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

var cloneIdentity = vm.Identity{
	InstanceID: "vm_clone", Hostname: "clone", MAC: net.HardwareAddr{2, 0xfc, 0, 0, 0, 11},
	Address: netip.MustParsePrefix("172.16.0.11/24"), Gateway: netip.MustParseAddr("172.16.0.1"),
}

// cloneAgent is the agent of a clone, which the test controls.
type cloneAgent struct {
	*fakeAgent
	requests chan wire.Identity
	answers  chan reidentifyAnswer
}

type reidentifyAnswer struct {
	self wire.Self
	err  error
}

func (a *cloneAgent) Reidentify(ctx context.Context, now time.Time, seed []byte, as wire.Identity) (wire.Self, error) {
	if len(seed) == 0 || time.Since(now) > time.Minute {
		return wire.Self{}, errors.New("no seed, or a wrong time")
	}
	a.requests <- as
	select {
	case answer := <-a.answers:
		return answer.self, answer.err
	case <-ctx.Done():
		return wire.Self{}, ctx.Err()
	}
}

// serve serves the next connection until cut is called.
func (a *cloneAgent) serve(t *testing.T) (cut func()) {
	t.Helper()
	return serveNext(a.conns, a)
}

func reidentify(t *testing.T, as vm.Identity) (*cloneAgent, vm.Session, <-chan *vm.GuestReport) {
	t.Helper()
	a := &cloneAgent{newFakeAgent(), make(chan wire.Identity, 8), make(chan reidentifyAnswer, 8)}
	reports := make(chan *vm.GuestReport, 64)
	g := guest.New(slog.New(slog.DiscardHandler), "").Reidentify("vm_clone", a.dial, func(r *vm.GuestReport) { reports <- r }, as)
	t.Cleanup(func() { _ = g.Close() })
	return a, g, reports
}

func confirmation() reidentifyAnswer {
	return reidentifyAnswer{self: wire.Self{Hostname: "clone", MAC: "02:fc:00:00:00:0b", Address: cloneIdentity.Address, MachineID: "m"}}
}

func TestCloneIsReidentifiedUntilItHasConfirmed(t *testing.T) {
	a, g, reports := reidentify(t, cloneIdentity)
	cut := a.serve(t)
	got := <-a.requests
	if got.InstanceID != "vm_clone" || got.Hostname != "clone" || got.CloudInit || *got.NIC != (wire.NIC{
		MAC: "02:fc:00:00:00:0b", Address: cloneIdentity.Address, Gateway: cloneIdentity.Gateway,
	}) {
		t.Errorf("got %+v, %+v", got, got.NIC)
	}
	cut() // before it has answered

	cut = a.serve(t)
	if again := <-a.requests; again.CloneID == "" || again.CloneID != got.CloneID {
		t.Errorf("the second request has the clone id %q, the first %q", again.CloneID, got.CloneID)
	}
	a.states <- state("done") // a report is no confirmation
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Confirmed(ctx); !errs.Is(err, errs.Unavailable) {
		t.Errorf("before it has answered: %v", err)
	}
	if len(reports) > 0 {
		t.Error("it sent reports before it had confirmed")
	}
	a.answers <- confirmation()
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
	if len(a.requests) > 0 {
		t.Error("it was reidentified although it had confirmed")
	}
}

func TestCloneThatCannotReidentify(t *testing.T) {
	a, g, reports := reidentify(t, cloneIdentity)
	cut := a.serve(t)
	a.answers <- reidentifyAnswer{err: errors.New("network: there is no\x1b interface")}
	err := g.Confirmed(t.Context())
	if !errs.HasCode(err, "reidentify_failed") || !errs.Is(err, errs.Internal) || !strings.Contains(err.Error(), "there is no\ufffd interface") {
		t.Errorf("got %v", err)
	}
	if len(reports) > 0 {
		t.Error("it sent reports")
	}
	cut()
	cut = a.serve(t)
	defer cut()
	a.answers <- confirmation()
	<-a.requests
	<-a.requests
	a.states <- state("done")
	<-reports
	if err := g.Confirmed(t.Context()); err != nil {
		t.Errorf("at the second attempt: %v", err)
	}
}

func TestCloneWithAnotherIdentityIsAnError(t *testing.T) {
	for what, spoil := range map[string]func(*wire.Self){
		"hostname": func(s *wire.Self) { s.Hostname = "parent" },
		"MAC":      func(s *wire.Self) { s.MAC = "02:fc:00:00:00:0a" },
		"address":  func(s *wire.Self) { s.Address = netip.MustParsePrefix("172.16.0.10/24") },
	} {
		a, g, _ := reidentify(t, cloneIdentity)
		cut := a.serve(t)
		answer := confirmation()
		spoil(&answer.self)
		a.answers <- answer
		if err := g.Confirmed(t.Context()); !errs.HasCode(err, "reidentify_failed") || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		_ = g.Close()
		cut()
	}
}

func TestCloneWithoutANetwork(t *testing.T) {
	for _, setup := range []vm.Setup{vm.SetupNone, vm.SetupKeys, vm.SetupAnew} {
		a, g, _ := reidentify(t, vm.Identity{InstanceID: "vm_clone", Hostname: "clone", Setup: setup})
		cut := a.serve(t)
		a.answers <- reidentifyAnswer{self: wire.Self{Hostname: "clone"}}
		if err := g.Confirmed(t.Context()); err != nil {
			t.Error(err)
		}
		if got := <-a.requests; got.NIC != nil || got.CloudInit != (setup == vm.SetupAnew) || got.SSHKeys != (setup == vm.SetupKeys) {
			t.Errorf("got %+v", got)
		}
		_ = g.Close()
		cut()
	}
}

func TestCloneWithAnOldAgentIsUnsupported(t *testing.T) {
	a, g, _ := reidentify(t, cloneIdentity)
	defer a.answer(t)() // by an agent that does not know the operation
	if err := g.Confirmed(t.Context()); !errs.Is(err, errs.Unsupported) || !errs.HasCode(err, "agent_too_old") {
		t.Errorf("got %v", err)
	}
}

func TestConfirmedOfAGuestThatIsNotAClone(t *testing.T) {
	g, _ := connect(t, newFakeAgent().dial)
	if err := g.Confirmed(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestConfirmedOfAClosedSession(t *testing.T) {
	_, g, _ := reidentify(t, cloneIdentity)
	_ = g.Close()
	if err := g.Confirmed(t.Context()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
}
