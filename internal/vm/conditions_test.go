package vm

import (
	"net/netip"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
)

func TestConditionsFollowReports(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	addr := netip.MustParseAddr("172.16.0.10")
	v := VM{Spec: machine.Spec{EnableNetwork: true, UserData: "#!/bin/sh"}, Lease: network.Lease{Address: addr}}
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
		{"cloud-init done, but", &GuestReport{Addresses: []netip.Addr{addr}, CloudInit: CloudInit{Status: "done", Warnings: []string{"odd"}}}, true, True, "AddressSet", "Degraded", true},
		{"cloud-init done anew", &GuestReport{Addresses: []netip.Addr{addr}, CloudInit: CloudInit{Status: "done"}}, true, True, "AddressSet", "Done", false},
		{"it goes down", &GuestReport{GoingDown: true, Addresses: []netip.Addr{addr}, CloudInit: CloudInit{Status: "done"}}, false, False, "AddressSet", "Done", false},
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

func TestAVMComesUpUntilItsGuestIsReady(t *testing.T) {
	now := time.Now()
	at := func(ago time.Duration) *time.Time { return new(now.Add(-ago)) }
	booting := bootConditions(&VM{}, now)
	ready := Conditions{Agent: Condition{Status: True}, Network: Condition{Reason: "Disabled"}, CloudInit: Condition{Status: True}}
	running := ready
	running.CloudInit = Condition{Status: False, Reason: "Running"}
	lost := running
	lost.Agent = Condition{Status: False, Reason: "Lost"}
	waking := ready
	waking.Agent = Condition{Status: Unknown, Reason: ReasonWaking}
	for name, tc := range map[string]struct {
		vm   VM
		want bool
	}{
		"being created":         {VM{State: Starting}, true},
		"booting":               {VM{State: Running, Conditions: booting, StartedAt: at(time.Minute)}, true},
		"cloud-init runs":       {VM{State: Running, Conditions: running, StartedAt: at(time.Minute)}, true},
		"woken, no answer yet":  {VM{State: Running, Conditions: waking, StartedAt: at(0)}, true},
		"ready":                 {VM{State: Running, Conditions: ready, StartedAt: at(time.Minute)}, false},
		"no agent for too long": {VM{State: Running, Conditions: booting, StartedAt: at(comeUpTimeout)}, false},
		"agent lost":            {VM{State: Running, Conditions: lost, StartedAt: at(time.Minute)}, false},
		"paused":                {VM{State: Paused, Conditions: booting, StartedAt: at(time.Minute)}, false},
		"stopped":               {VM{State: Stopped}, false},
		"failed":                {VM{State: Failed}, false},
	} {
		if got := tc.vm.ComesUp(now); got != tc.want {
			t.Errorf("%s: it comes up: %v, want %v", name, got, tc.want)
		}
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
