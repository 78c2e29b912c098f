package vm

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestConditionsFollowReports(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	addr := netip.MustParseAddr("172.16.0.10")
	v := VM{EnableNetwork: true, Lease: Lease{Address: addr}, UserData: "#!/bin/sh"}
	v.Conditions = bootConditions(&v, t0)
	if v.Conditions.Ready() {
		t.Fatal("a guest that has just begun to boot is not ready")
	}

	steps := []struct {
		name     string
		report   *GuestReport
		ready    bool
		agent    Status
		network  string
		cloud    string
		hasWords bool
	}{
		{"agent up, no address", &GuestReport{CloudInit: CloudInit{Status: "running"}}, false, True, "NoAddress", "Running", true},
		{"address set", &GuestReport{Addresses: []netip.Addr{addr}, CloudInit: CloudInit{Status: "running"}}, false, True, "AddressSet", "Running", true},
		{"cloud-init done", &GuestReport{Addresses: []netip.Addr{addr}, CloudInit: CloudInit{Status: "done"}}, true, True, "AddressSet", "Done", false},
		{"session lost", nil, false, False, "AddressSet", "Done", false},
		{"cloud-init failed", &GuestReport{Addresses: []netip.Addr{addr}, CloudInit: CloudInit{Status: "error", Errors: []string{"boom"}}}, true, True, "AddressSet", "Failed", true},
		{"no cloud-init at all", &GuestReport{Addresses: []netip.Addr{addr}, CloudInit: CloudInit{Status: "absent"}}, true, True, "AddressSet", "Absent", true},
	}
	for i, st := range steps {
		v.Conditions = observed(v, st.report, t0.Add(time.Duration(i+1)*time.Second))
		c := v.Conditions
		if c.Ready() != st.ready || c.Agent.Status != st.agent || c.Network.Reason != st.network || c.CloudInit.Reason != st.cloud {
			t.Errorf("%s: got %+v", st.name, c)
		}
		if st.hasWords && c.CloudInit.Message == "" {
			t.Errorf("%s: the condition says nothing in words", st.name)
		}
	}
	if want := t0.Add(2 * time.Second); !v.Conditions.Network.ChangedAt.Equal(want) {
		t.Errorf("the time of a condition that did not change moved: %v, want %v", v.Conditions.Network.ChangedAt, want)
	}
}

func TestNetworklessGuestIsReadyWithoutAddress(t *testing.T) {
	v := VM{}
	v.Conditions = bootConditions(&v, time.Now())
	v.Conditions = observed(v, &GuestReport{CloudInit: CloudInit{Status: "done"}}, time.Now())
	if !v.Conditions.Ready() {
		t.Errorf("not ready: %+v", v.Conditions)
	}
}

func TestEveryExitHasAReason(t *testing.T) {
	want := map[vmm.ExitCause]State{
		vmm.ExitShutdown: Stopped, vmm.ExitKilled: Stopped, vmm.ExitPanic: Failed,
		vmm.ExitCrashed: Failed, vmm.ExitReset: Failed, vmm.ExitUnknown: Failed,
	}
	for cause, state := range want {
		got, reason := afterExit(vmm.Exit{Cause: cause, Detail: "killed by signal 9"})
		if got != state || reason == "" {
			t.Errorf("%s: got %s %q, want %s and a reason", cause, got, reason, state)
		}
	}
}

func TestLocksSerialiseAndGiveUp(t *testing.T) {
	l := newLocks()
	unlock, err := l.lock(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Fatalf("a held lock was given, or another error: %v", err)
	}
	other, err := l.lock(ctx, "b")
	if err == nil {
		other()
	}
	unlock()
	if again, err := l.lock(context.Background(), "a"); err != nil {
		t.Fatal(err)
	} else {
		again()
	}
	if len(l.by) != 0 {
		t.Errorf("%d entries are left", len(l.by))
	}
}

func TestNewIDsHaveTheDocumentedForm(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		text := id.New(IDPrefix)
		if len(text) != len("vm_abc123def456") || seen[text] || !nameForm.MatchString(text[len(IDPrefix):]) {
			t.Fatalf("id %q is of another form or not new", text)
		}
		seen[text] = true
	}
}

// A guest that reports as fast as it can is heard at once at first, and then
// rarely; one that has been quiet is heard at once again.
func TestReportsArePaced(t *testing.T) {
	var p pace
	now := time.Now()
	began := now
	for range reportBurst {
		if d := p.pause(now); d != reportPause {
			t.Fatalf("paused for %s within the burst", d)
		}
		now = now.Add(reportPause)
	}
	heard := 0
	for now.Sub(began) < time.Hour {
		now = now.Add(p.pause(now))
		heard++
	}
	if most := int(time.Hour/reportRest) + reportBurst; heard > most {
		t.Errorf("%d reports in an hour, %d are the most", heard, most)
	}
	now = now.Add(reportBurst * reportRest)
	if d := p.pause(now); d != reportPause {
		t.Errorf("paused for %s after a rest", d)
	}
}
