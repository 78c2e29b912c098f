//go:build system

package bridge

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

func testBridge(t *testing.T) *Bridge {
	t.Helper()
	n, err := network.New("hatch0", "172.16.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	b := New(n, 0)
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("hatch0"); err == nil {
			_ = netlink.LinkDel(link)
		}
	})
	return b
}

func ensured(t *testing.T) *Bridge {
	t.Helper()
	b := testBridge(t)
	if err := b.Ensure(); err != nil {
		t.Fatal(err)
	}
	return b
}

// add makes an interface as another program would.
func add(t *testing.T, link netlink.Link) netlink.Link {
	t.Helper()
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	return link
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

func give(t *testing.T, link netlink.Link, cidr string) {
	t.Helper()
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
}

func testPort(b *Bridge) Port {
	addr := b.net.At(10)
	return Port{TAP: "htap10", MAC: b.net.MAC(addr), Address: addr}
}

func openTAP(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := OpenTAP(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func codeOf(err error) string {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return e.Code
	}
	return ""
}

func TestEnsureMayBeRepeated(t *testing.T) {
	b := ensured(t)
	if err := b.Ensure(); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureUsesABridgeThatFits(t *testing.T) {
	b := testBridge(t)
	give(t, add(t, &netlink.Bridge{LinkAttrs: named("hatch0")}), "172.16.0.1/24")
	if err := b.Ensure(); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(); err != nil {
		t.Fatal(err)
	}
	if link, err := b.find(); err != nil || link == nil {
		t.Errorf("a bridge that existed before was removed (%v)", err)
	}
}

func TestEnsureRefusesWhatIsNotOurs(t *testing.T) {
	cases := map[string]struct {
		make func(t *testing.T)
		code string
	}{
		"no bridge": {func(t *testing.T) { add(t, &netlink.Veth{LinkAttrs: named("hatch0"), PeerName: "hatch0p"}) }, "bridge_name_taken"},
		"another address": {func(t *testing.T) {
			give(t, add(t, &netlink.Bridge{LinkAttrs: named("hatch0")}), "10.0.0.1/24")
		}, "bridge_address_differs"},
		"another mask": {func(t *testing.T) {
			give(t, add(t, &netlink.Bridge{LinkAttrs: named("hatch0")}), "172.16.0.1/16")
		}, "bridge_address_differs"},
		"a foreign port": {func(t *testing.T) {
			br := add(t, &netlink.Bridge{LinkAttrs: named("hatch0")})
			if err := netlink.LinkSetMaster(add(t, &netlink.Veth{LinkAttrs: named("eth9"), PeerName: "eth9p"}), br); err != nil {
				t.Fatal(err)
			}
		}, "bridge_has_foreign_ports"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := testBridge(t)
			c.make(t)
			err := b.Ensure()
			if codeOf(err) != c.code {
				t.Fatalf("got %v, want code %s", err, c.code)
			}
			var e *errs.Error
			if errors.As(err, &e); e.Hint == "" {
				t.Error("the error does not say what to do")
			}
		})
	}
}

func TestCheckNotices(t *testing.T) {
	changes := map[string]func(b *Bridge, link netlink.Link) error{
		"down":          func(_ *Bridge, l netlink.Link) error { return netlink.LinkSetDown(l) },
		"MTU":           func(_ *Bridge, l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) },
		"no forwarding": func(*Bridge, netlink.Link) error { return write("ipv4/ip_forward", "0") },
		"arp_ignore":    func(*Bridge, netlink.Link) error { return write("ipv4/conf/hatch0/arp_ignore", "0") },
		"address": func(b *Bridge, l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: b.gateway()})
		},
		"gone": func(_ *Bridge, l netlink.Link) error { return netlink.LinkDel(l) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			b := ensured(t)
			link, err := b.find()
			if err != nil {
				t.Fatal(err)
			}
			if err := change(b, link); err != nil {
				t.Fatal(err)
			}
			if err := b.Check(); err == nil {
				t.Error("Check passes")
			}
			if err := b.Ensure(); err != nil {
				t.Errorf("Ensure does not repair it: %v", err)
			}
		})
	}
}

func write(name, value string) error {
	return os.WriteFile(procNet+"/"+name, []byte(value), 0)
}

func TestTAPLivesAsLongAsItsFile(t *testing.T) {
	f := openTAP(t, "htap10")
	if _, err := OpenTAP("htap10"); codeOf(err) != "tap_in_use" {
		t.Errorf("a second open: %v, want tap_in_use", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("htap10"); !isNotFound(err) {
		t.Errorf("the TAP is still there (%v)", err)
	}
}

func TestOpenTAPRefusesForeignInterfaces(t *testing.T) {
	add(t, &netlink.Veth{LinkAttrs: named("veth7"), PeerName: "veth7p"})
	if _, err := OpenTAP("veth7"); codeOf(err) != "tap_in_use" {
		t.Errorf("got %v, want tap_in_use", err)
	}
	if _, err := OpenTAP(strings.Repeat("x", 16)); err == nil {
		t.Error("a name that is too long was accepted")
	}
}

func TestJoinIsolatesThePort(t *testing.T) {
	b := ensured(t)
	p := testPort(b)
	openTAP(t, p.TAP)
	for range 2 { // twice: joining again is no error
		if err := b.Join(p); err != nil {
			t.Fatal(err)
		}
	}
	link, err := netlink.LinkByName(p.TAP)
	if err != nil {
		t.Fatal(err)
	}
	flags, err := netlink.LinkGetProtinfo(link)
	if err != nil || !flags.Isolated || flags.Learning || flags.Flood || flags.Hairpin {
		t.Errorf("the port is %+v (%v)", flags, err)
	}
}

func TestVerifyNoticesEachSetting(t *testing.T) {
	b := ensured(t)
	p := testPort(b)
	openTAP(t, p.TAP)
	tap, err := netlink.LinkByName(p.TAP)
	if err != nil {
		t.Fatal(err)
	}
	br, err := b.find()
	if err != nil {
		t.Fatal(err)
	}
	index, bridge := tap.Attrs().Index, br.Attrs().Index
	flag := func(change func(*portFlags)) func() error {
		flags := guestPort
		change(&flags)
		return func() error { return setPortFlags(index, flags) }
	}
	changes := map[string]func() error{
		"isolated":        flag(func(f *portFlags) { f.isolated = false }),
		"learning":        flag(func(f *portFlags) { f.learning = true }),
		"unicast flood":   flag(func(f *portFlags) { f.unicastFlood = true }),
		"multicast flood": flag(func(f *portFlags) { f.multicastFlood = true }),
		"broadcast flood": flag(func(f *portFlags) { f.broadcastFlood = false }),
		"hairpin":         flag(func(f *portFlags) { f.hairpin = true }),
		"proxy ARP":       flag(func(f *portFlags) { f.proxyARP = true }),
		"group":           func() error { return netlink.LinkSetGroup(tap, 7) },
		"MTU":             func() error { return netlink.LinkSetMTU(tap, 1400) },
		"down":            func() error { return netlink.LinkSetDown(tap) },
		"IPv6":            func() error { return write("ipv6/conf/"+p.TAP+"/disable_ipv6", "0") },
		"no master":       func() error { return netlink.LinkSetNoMaster(tap) },
		"no forwarding entry": func() error {
			return netlink.NeighDel(p.forwarding(index))
		},
		"another neighbour": func() error {
			n := p.neighbour(bridge)
			n.HardwareAddr = []byte{2, 1, 1, 1, 1, 1}
			return netlink.NeighSet(n)
		},
		"a neighbour that ages": func() error {
			n := p.neighbour(bridge)
			n.State = netlink.NUD_REACHABLE
			return netlink.NeighSet(n)
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			if err := b.Join(p); err != nil {
				t.Fatal(err)
			}
			if err := change(); err != nil {
				t.Fatal(err)
			}
			if err := b.verify(p, index, bridge); err == nil {
				t.Error("verify passes")
			}
		})
	}
}

func TestJoinRefuses(t *testing.T) {
	b := ensured(t)
	p := testPort(b)
	if err := b.Join(p); codeOf(err) != "tap_missing" {
		t.Errorf("no TAP: %v", err)
	}
	add(t, &netlink.Veth{LinkAttrs: named("veth7"), PeerName: "veth7p"})
	if err := b.Join(Port{TAP: "veth7", MAC: p.MAC, Address: p.Address}); codeOf(err) != "tap_foreign" {
		t.Errorf("an interface that is no TAP: %v", err)
	}
	if err := b.Join(Port{TAP: p.TAP, MAC: b.MAC(), Address: p.Address}); codeOf(err) != "guest_mac_taken" {
		t.Errorf("the host's own MAC: %v", err)
	}
	openTAP(t, p.TAP)
	tap, err := netlink.LinkByName(p.TAP)
	if err != nil {
		t.Fatal(err)
	}
	other := add(t, &netlink.Bridge{LinkAttrs: named("other0")})
	if err := netlink.LinkSetMaster(tap, other); err != nil {
		t.Fatal(err)
	}
	if err := b.Join(p); codeOf(err) != "tap_foreign" {
		t.Errorf("a TAP of another bridge: %v", err)
	}
	if err := b.Leave(p); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(p.TAP); err != nil {
		t.Errorf("Leave deleted a foreign TAP: %v", err)
	}
}

func TestLeaveMayBeRepeated(t *testing.T) {
	b := ensured(t)
	p := testPort(b)
	openTAP(t, p.TAP)
	if err := b.Join(p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Leave(p); err != nil {
			t.Fatal(err)
		}
	}
	br, err := b.find()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkNeighbour(br.Attrs().Index, p.Address, p.MAC); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the neighbour entry is still there (%v)", err)
	}
}
