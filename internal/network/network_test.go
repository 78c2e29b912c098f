package network

import (
	"net/netip"
	"testing"
)

func TestNewRefuses(t *testing.T) {
	for _, cidr := range []string{"", "172.16.0.1", "172.16.0.0/24", "172.16.0.255/24", "10.0.0.1/7", "10.0.0.1/31", "fd00::1/64"} {
		if n, err := New("hatch0", cidr); err == nil {
			t.Errorf("%q makes %+v", cidr, n)
		}
	}
}

func TestAddressesAndMACs(t *testing.T) {
	n, err := New("hatch0", "172.16.3.1/23")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("172.16.3.10")
	if got := n.HostNumber(addr); got != 266 || n.At(got) != addr {
		t.Errorf("host number %d, back to %s", got, n.At(got))
	}
	if got := FormatMAC(n.MAC(addr)); got != "02:FC:00:00:01:0A" {
		t.Errorf("MAC %s", got)
	}
	for a, want := range map[string]bool{
		"172.16.2.1": true, "172.16.3.254": true, "172.16.3.1": false, "172.16.2.0": false,
		"172.16.3.255": false, "172.16.4.1": false, "fd00::1": false,
	} {
		if why, ok := n.Usable(netip.MustParseAddr(a)); ok != want || ok == (why != "") {
			t.Errorf("%s: %v (%q)", a, ok, why)
		}
	}
}

func TestPortGroupIsTheBridgesOwn(t *testing.T) {
	a, b := Network{Bridge: "hatch0"}.PortGroup(), Network{Bridge: "hatch1"}.PortGroup()
	if a == b || a < 1<<30 || b < 1<<30 || a >= 1<<31 || b >= 1<<31 {
		t.Errorf("groups %d and %d", a, b)
	}
}
