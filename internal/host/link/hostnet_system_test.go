//go:build system

package link

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestTheMTUFollowsTheUplink(t *testing.T) {
	if got := uplinkMTU(); got != 1500 {
		t.Errorf("without an uplink: %d, want 1500", got)
	}
	internet(t)
	up, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	for of, want := range map[int]int{9000: 1500, 1450: 1450, 1000: minMTU} {
		if err := netlink.LinkSetMTU(up, of); err != nil {
			t.Fatal(err)
		}
		if got := uplinkMTU(); got != want {
			t.Errorf("uplink with %d: %d, want %d", of, got, want)
		}
	}
}

func TestLocalNetworks(t *testing.T) {
	internet(t)
	l := setUp(t, Config{})
	up, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.ParseAddr("203.0.113.1/32")
	if err != nil {
		t.Fatal(err)
	}
	other, err := netlink.ParseAddr("203.0.113.2/32")
	if err != nil {
		t.Fatal(err)
	}
	peer.Peer = other.IPNet
	if err := netlink.AddrAdd(up, peer); err != nil {
		t.Fatal(err)
	}
	got, err := localNetworks(l.cfg.Network)
	want := []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/30"), netip.MustParsePrefix("203.0.113.2/32"),
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
}
