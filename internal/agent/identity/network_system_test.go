//go:build system

package identity

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/agent/nic"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var networkedIdentity = wire.Identity{InstanceID: "vm_clone", Hostname: "clone-2", NIC: &wire.NIC{
	MAC: "02:fc:00:00:00:0b", Address: netip.MustParsePrefix("172.16.0.11/24"), Gateway: netip.MustParseAddr("172.16.0.1"),
}}

// newNetworked returns an original with the files and the interface eth0.
func newNetworked(t *testing.T, files map[string]string) (*original, netlink.Link) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "eth0", net.HardwareAddr{2, 0xfc, 0, 0, 0, 10}
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "far0"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	far, err := netlink.LinkByName("far0")
	if err == nil {
		err = netlink.LinkSetUp(far)
	}
	if err != nil {
		t.Fatal(err)
	}
	old := nic.Config{MAC: attrs.HardwareAddr, Address: netip.MustParsePrefix("172.16.0.10/24"), Gateway: netip.MustParseAddr("172.16.0.1")}
	if err := old.Apply(link); err != nil {
		t.Fatal(err)
	}
	o := newOriginal(t, files)
	o.write(t, "sys/class/net/eth0/device/vendor", "")
	return o, link
}

func TestNetworkOfAClone(t *testing.T) {
	o, link := newNetworked(t, map[string]string{"etc/systemd/network/10-eth0.network": "MACAddress=02:fc:00:00:00:0a\n"})
	self := o.reidentify(t, networkedIdentity)
	if self.MAC != networkedIdentity.NIC.MAC || self.Address != networkedIdentity.NIC.Address {
		t.Errorf("it reports %+v", self)
	}
	if got := o.read("etc/systemd/network/10-eth0.network"); got != "MACAddress=02:fc:00:00:00:0b\n" {
		t.Errorf("the file says %q", got)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Reidentify(t.Context(), networkedIdentity); err == nil || !strings.Contains(err.Error(), "the network: the guest has no network interface") {
		t.Errorf("without an interface: %v", err)
	}
}

// TestReidentifyAwaitsTheLease has a fake networkd, which gets a lease some time after
// it is restarted. The lease of an earlier attempt exists before, and the interface is
// down until the restart.
func TestReidentifyAwaitsTheLease(t *testing.T) {
	o, link := newNetworked(t, map[string]string{
		"run/systemd/system/x": "", "run/systemd/units/invocation:systemd-networkd.service": "-> 0123", "lib/systemd/system/systemd-networkd.service": "", "lib/systemd/system/dhcpcd.service": "",
		"lib/systemd/system/networking.service": "", "etc/systemd/system/networking.service": "-> /dev/null",
	})
	lease := "run/systemd/netif/leases/" + strconv.Itoa(link.Attrs().Index)
	o.write(t, "run/systemd/netif/links/"+strconv.Itoa(link.Attrs().Index), "# of networkd\nADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/eth0.network\n")
	o.write(t, lease, "SERVER=172.16.0.1\nADDRESS=172.16.0.11\n") // of an earlier attempt
	o.write(t, "bin/systemctl*", fmt.Sprintf("#!/bin/sh\necho $@ > %s\nip -br addr show dev eth0 > %s\n"+
		"(ip link set eth0 up; sleep 0.3; ip addr add 172.16.0.11/24 dev eth0; sleep 0.3\n"+
		"echo ADDRESS=172.16.0.11 > %s) > /dev/null 2>&1 &\n", o.path("called"), o.path("before"), o.path(lease)))
	if self := o.reidentify(t, networkedIdentity); self.Address != networkedIdentity.NIC.Address {
		t.Errorf("it reports %+v", self)
	}
	if got := o.read(lease); got != "ADDRESS=172.16.0.11\n" {
		t.Errorf("confirmed with the lease %q", got)
	}
	if got := o.read("called"); got != "try-restart systemd-networkd.service dhcpcd.service\n" {
		t.Errorf("systemctl was called with %q", got)
	}
	if got := strings.Fields(o.read("before")); len(got) != 2 || got[1] != "DOWN" {
		t.Errorf("when networkd was restarted the interface was %q", got)
	}
	has, err := nic.Addresses(link)
	if err != nil || !slices.Contains(has, networkedIdentity.NIC.Address) {
		t.Errorf("it has %v, %v", has, err)
	}
}
