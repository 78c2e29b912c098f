//go:build system

package nic

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var (
	oldConfig = Config{
		MAC:     net.HardwareAddr{2, 0xfc, 0, 0, 0, 10},
		Address: netip.MustParsePrefix("172.16.0.10/24"), Gateway: netip.MustParseAddr("172.16.0.1"),
	}
	newConfig = Config{
		MAC:     net.HardwareAddr{2, 0xfc, 0, 0, 0, 11},
		Address: netip.MustParsePrefix("172.16.0.11/24"), Gateway: netip.MustParseAddr("172.16.0.2"),
	}
)

// configured makes an interface with the old configuration.
func configured(t *testing.T, name string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, oldConfig.MAC
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "far-" + name}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	far, err := netlink.LinkByName("far-" + name)
	if err == nil {
		err = netlink.LinkSetUp(far)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := oldConfig.Apply(link); err != nil {
		t.Fatal(err)
	}
	return link
}

func inspect(t *testing.T, name string) (netlink.Link, []netip.Prefix, []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := Addresses(link)
	if err != nil {
		t.Fatal(err)
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var gateways []string
	for _, r := range routes {
		if r.Gw != nil {
			gateways = append(gateways, r.Gw.String())
		}
	}
	return link, addresses, gateways
}

func TestReplaceRemovesTheOldConfig(t *testing.T) {
	link := configured(t, "eth0")
	for _, cidr := range []string{"172.16.0.77/24", "10.9.9.9/32", "2001:db8::10/64"} {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
	_, far, err := net.ParseCIDR("192.0.2.0/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: far, Gw: net.ParseIP("172.16.0.9")}); err != nil {
		t.Fatal(err)
	}
	neighbour := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_REACHABLE, IP: net.ParseIP("172.16.0.1"), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}
	if err := netlink.NeighAdd(neighbour); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second time changes nothing
		if err := newConfig.Replace(link); err != nil {
			t.Fatal(err)
		}
		moved, addresses, gateways := inspect(t, "eth0")
		if mac := moved.Attrs().HardwareAddr.String(); mac != newConfig.MAC.String() || moved.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("it has the MAC %s, flags %s", mac, moved.Attrs().Flags)
		}
		if !slices.Equal(addresses, []netip.Prefix{newConfig.Address}) || !slices.Equal(gateways, []string{"172.16.0.2"}) {
			t.Errorf("it has the addresses %v, gateways %v", addresses, gateways)
		}
		neighbours, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		if err != nil || slices.ContainsFunc(neighbours, func(n netlink.Neigh) bool { return n.IP.String() == "172.16.0.1" }) {
			t.Errorf("it knows %v, %v", neighbours, err)
		}
	}
}

// TestReplaceEndsConnections has two sockets: a listener on every address continues,
// and a connection from the old address does not.
func TestReplaceEndsConnections(t *testing.T) {
	peer := nettest.NewNamespace(t)
	nettest.Wire(t, peer, "wire0", "172.16.0.10/24", "peer0", "172.16.0.1/24")
	var there net.Listener
	peer.Do(t, func() (err error) {
		there, err = net.Listen("tcp", "172.16.0.1:9000")
		return err
	})
	defer func() { _ = there.Close() }()
	out, err := net.Dial("tcp", "172.16.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	accepted, err := there.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = accepted.Close() }()
	here, err := net.Listen("tcp4", "0.0.0.0:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()

	link, err := netlink.LinkByName("wire0")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 16)
	nettest.Sniff(t, peer, "peer0", func(frame []byte) {
		for _, text := range []string{"before the change", "after the change"} {
			if strings.Contains(string(frame), text) {
				seen <- text
			}
		}
	})
	_, _ = out.Write([]byte("before the change"))
	if text := <-seen; text != "before the change" {
		t.Fatalf("seen was %q", text)
	}
	c := newConfig
	c.Gateway = netip.MustParseAddr("172.16.0.1")
	if err := c.Replace(link); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Write([]byte("after the change"))

	var in net.Conn
	peer.Do(t, func() (err error) {
		in, err = net.Dial("tcp", "172.16.0.11:9001")
		return err
	})
	_ = in.Close()
	for len(seen) > 0 {
		if text := <-seen; text == "after the change" {
			t.Error("the old connection continued")
		}
	}
}

func TestPhysicalInterfaceHasADevice(t *testing.T) {
	sys := t.TempDir()
	device := func(name string) {
		if err := os.MkdirAll(filepath.Join(sys, "class/net", name, "device"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	configured(t, "br7")
	if _, err := Physical(sys, newConfig.MAC); err == nil || !strings.Contains(err.Error(), "no network interface") {
		t.Errorf("without a device: %v", err)
	}
	configured(t, "ens3")
	device("ens3")
	if link, err := Physical(sys, newConfig.MAC); err != nil || link.Attrs().Name != "ens3" {
		t.Errorf("with one: %v, %v", link, err)
	}
	other := configured(t, "ens4")
	device("ens4")
	if _, err := Physical(sys, newConfig.MAC); err == nil || !strings.Contains(err.Error(), "ens3, ens4") {
		t.Errorf("with two: %v", err)
	}
	if err := netlink.LinkSetHardwareAddr(other, newConfig.MAC); err != nil {
		t.Fatal(err)
	}
	if link, err := Physical(sys, newConfig.MAC); err != nil || link.Attrs().Name != "ens4" {
		t.Errorf("with two, one of which has the MAC: %v, %v", link, err)
	}
}
