package httpapi

import (
	"context"
	"net/netip"
	"reflect"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

func with(rights access.Rights) context.Context {
	return context.WithValue(context.Background(), callerKey{}, &caller{Principal: access.Principal{Rights: rights}})
}

func TestPorts(t *testing.T) {
	in := []api.Port{{Guest: 80, Host: 8080, Name: "web", AllowedCIDRs: []string{"192.0.2.7/24", "2001:db8::7", "127.0.0.1"}}, {Guest: 81}}
	want := []machine.Port{{Guest: 80, Host: 8080, Name: "web", Allowed: []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::7/128"), netip.MustParsePrefix("127.0.0.1/32"),
	}}, {Guest: 81}}
	if got, err := ports(in); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "x", "192.0.2.0/33", "192.0.2.0/24/1", "example.org", "fe80::1%eth0/64"} {
		if got, err := ports([]api.Port{{Guest: 80, AllowedCIDRs: []string{bad}}}); !errs.HasCode(err, "invalid_ports") {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
	if got, err := ports([]api.Port{{Guest: 80, AllowedCIDRs: []string{}}}); err != nil || got[0].Allowed == nil {
		t.Errorf("no networks became the default ones: %+v, %v", got, err)
	}
}

func TestHostPortsAreChosenByAdmins(t *testing.T) {
	for host, allowed := range map[int]bool{0: true, 80: false, 1024: false, 26000: false} {
		given := []machine.Port{{Guest: 80, Host: host}}
		if err := mayPublish(with(access.RightsOf(access.Write(access.VMs))), given); (err == nil) != allowed || err != nil && !errs.Is(err, errs.Forbidden) {
			t.Errorf("%d: %v", host, err)
		}
		if err := mayPublish(with(access.AllRights), given); err != nil {
			t.Errorf("%d for an admin: %v", host, err)
		}
	}
}

// A client may send back what it has read, and then change one port.
func TestChangedPorts(t *testing.T) {
	v := vm.VM{
		Spec:  machine.Spec{Ports: []machine.Port{{Guest: 80}, {Guest: 443, Host: 443}}},
		Lease: network.Lease{Ports: map[int]int{80: 26001, 443: 443}},
	}
	writer := with(access.RightsOf(access.Write(access.VMs)))
	read := shownPorts(v.Ports, v.Lease.Ports)
	if got, err := changedPorts(writer, v, read); err != nil || !reflect.DeepEqual(got, v.Ports) {
		t.Errorf("as it was read: %+v, %v", got, err)
	}
	read[0].Host = 26002
	if got, err := changedPorts(with(access.AllRights), v, read); err != nil || got[0].Host != 26002 {
		t.Errorf("another host port: %+v, %v", got, err)
	}
	read[0].Host = 81
	if got, err := changedPorts(writer, v, read); !errs.Is(err, errs.Forbidden) {
		t.Errorf("a host port of its choice: %+v, %v", got, err)
	}
	if got, err := changedPorts(writer, v, nil); err != nil || got != nil {
		t.Errorf("none: %+v, %v", got, err)
	}
}
