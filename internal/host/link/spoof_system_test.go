//go:build system

package link

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

// marks collects the marks that were seen in frames.
type marks struct {
	mu   sync.Mutex
	seen map[string]bool
	news chan struct{}
}

func newMarks() *marks {
	return &marks{seen: map[string]bool{}, news: make(chan struct{}, 1)}
}

// look records every word of the form mark-… in a frame.
func (m *marks) look(frame []byte) {
	_, rest, found := strings.Cut(string(frame), "mark-")
	if !found {
		return
	}
	word, _, _ := strings.Cut(rest, ";")
	m.mu.Lock()
	m.seen[word] = true
	m.mu.Unlock()
	select {
	case m.news <- struct{}{}:
	default:
	}
}

func (m *marks) has(word string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[word]
}

// await waits until a mark was seen.
func (m *marks) await(t testing.TB, word string) {
	t.Helper()
	deadline := time.After(soon)
	for !m.has(word) {
		select {
		case <-m.news:
		case <-deadline:
			t.Fatalf("mark %q did not arrive", word)
		}
	}
}

func mark(word string) string { return "mark-" + word + ";" }

func TestOnlyAGuestsOwnFramesPass(t *testing.T) {
	l := setUp(t, Config{})
	g, v := plug(t, l, 10)
	_, other := plug(t, l, 11)
	gateway, gatewayMAC := l.cfg.Network.Gateway, l.cfg.Network.MAC(l.cfg.Network.Gateway)
	nowhere, everywhere := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})
	onHost := newMarks()
	nettest.Sniff(t, nil, l.cfg.Network.Bridge, onHost.look)

	ip := func(from netip.Addr, word string) []byte {
		return udp(netip.AddrPortFrom(from, 40000), netip.AddrPortFrom(gateway, 53), mark(word))
	}
	dhcp := func(word string) []byte {
		return udp(netip.AddrPortFrom(nowhere, 68), netip.AddrPortFrom(everywhere, 67), bootp(v.MAC, mark(word)))
	}
	renewal := func(to netip.Addr, chaddr net.HardwareAddr, word string) []byte {
		return ethernet(gatewayMAC, v.MAC, etherIPv4, udp(netip.AddrPortFrom(v.Address, 68), netip.AddrPortFrom(to, 67), bootp(chaddr, mark(word))))
	}
	stranger := net.HardwareAddr{0x02, 1, 2, 3, 4, 5}
	cases := []struct {
		name   string
		passes bool
		frame  func(word string) []byte
	}{
		{"own-ip", true, func(w string) []byte { return ethernet(gatewayMAC, v.MAC, etherIPv4, ip(v.Address, w)) }},
		{"own-arp", true, func(w string) []byte {
			return ethernet(broadcastMAC, v.MAC, etherARP, arp(1, v.MAC, v.Address, gateway, mark(w)))
		}},
		{"own-dhcp", true, func(w string) []byte { return ethernet(broadcastMAC, v.MAC, etherIPv4, dhcp(w)) }},
		{"mac-of-other", false, func(w string) []byte { return ethernet(gatewayMAC, other.MAC, etherIPv4, ip(v.Address, w)) }},
		{"ip-of-other", false, func(w string) []byte { return ethernet(gatewayMAC, v.MAC, etherIPv4, ip(other.Address, w)) }},
		{"both-of-other", false, func(w string) []byte { return ethernet(gatewayMAC, other.MAC, etherIPv4, ip(other.Address, w)) }},
		{"ip-of-gateway", false, func(w string) []byte { return ethernet(gatewayMAC, v.MAC, etherIPv4, ip(gateway, w)) }},
		{"ip-zero", false, func(w string) []byte { return ethernet(gatewayMAC, v.MAC, etherIPv4, ip(nowhere, w)) }},
		{"arp-for-gateway", false, func(w string) []byte {
			return ethernet(broadcastMAC, v.MAC, etherARP, arp(2, v.MAC, gateway, other.Address, mark(w)))
		}},
		{"arp-for-other", false, func(w string) []byte {
			return ethernet(gatewayMAC, v.MAC, etherARP, arp(2, v.MAC, other.Address, gateway, mark(w)))
		}},
		{"arp-foreign-mac-inside", false, func(w string) []byte {
			return ethernet(gatewayMAC, v.MAC, etherARP, arp(2, stranger, v.Address, gateway, mark(w)))
		}},
		{"arp-odd-lengths", false, func(w string) []byte {
			p := arp(1, v.MAC, v.Address, gateway, mark(w))
			p[4] = 8
			return ethernet(broadcastMAC, v.MAC, etherARP, p)
		}},
		// What a clone of the other guest sends before it is reidentified.
		{"arp-all-of-other", false, func(w string) []byte {
			return ethernet(broadcastMAC, other.MAC, etherARP, arp(1, other.MAC, other.Address, gateway, mark(w)))
		}},
		{"dhcp-of-other", false, func(w string) []byte { return ethernet(broadcastMAC, other.MAC, etherIPv4, dhcp(w)) }},
		{"dhcp-from-stranger", false, func(w string) []byte { return ethernet(broadcastMAC, stranger, etherIPv4, dhcp(w)) }},
		{"dhcp-renewal", true, func(w string) []byte { return renewal(gateway, v.MAC, w) }},
		{"dhcp-rebinding", true, func(w string) []byte { return renewal(everywhere, v.MAC, w) }},
		// The server would reply to the other guest.
		{"dhcp-chaddr-of-other", false, func(w string) []byte {
			return ethernet(broadcastMAC, v.MAC, etherIPv4, udp(netip.AddrPortFrom(nowhere, 68), netip.AddrPortFrom(everywhere, 67), bootp(other.MAC, mark(w))))
		}},
		{"dhcp-renewal-chaddr-of-other", false, func(w string) []byte { return renewal(gateway, other.MAC, w) }},
		{"dhcp-to-another-address", false, func(w string) []byte { return renewal(netip.MustParseAddr("198.51.100.1"), v.MAC, w) }},
		{"dhcp-without-chaddr", false, func(w string) []byte {
			return ethernet(broadcastMAC, v.MAC, etherIPv4, udp(netip.AddrPortFrom(nowhere, 68), netip.AddrPortFrom(everywhere, 67), mark(w)))
		}},
		{"dhcp-server", false, func(w string) []byte {
			return ethernet(broadcastMAC, v.MAC, etherIPv4, udp(netip.AddrPortFrom(nowhere, 67), netip.AddrPortFrom(everywhere, 68), mark(w)))
		}},
		{"ipv6", false, func(w string) []byte {
			p := make([]byte, 40)
			p[0], p[6], p[7] = 0x60, 59, 64
			return ethernet(gatewayMAC, v.MAC, etherIPv6, append(p, mark(w)...))
		}},
		{"vlan", false, func(w string) []byte {
			return tagged(ethernet(gatewayMAC, v.MAC, etherIPv4, ip(v.Address, w)), 5)
		}},
		{"vlan-zero", false, func(w string) []byte {
			return tagged(ethernet(gatewayMAC, v.MAC, etherIPv4, ip(v.Address, w)), 0)
		}},
		{"vlan-twice", false, func(w string) []byte {
			return tagged(tagged(ethernet(gatewayMAC, v.MAC, etherIPv4, ip(v.Address, w)), 5), 0)
		}},
		{"other-ethertype", false, func(w string) []byte { return ethernet(gatewayMAC, v.MAC, 0x88b5, []byte(mark(w))) }},
		{"llc", false, func(w string) []byte { return ethernet(gatewayMAC, v.MAC, 60, append(make([]byte, 3), mark(w)...)) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g.Inject(t, c.frame(c.name))
			// Frames keep their order: the other would have arrived before this one.
			g.Inject(t, ethernet(gatewayMAC, v.MAC, etherIPv4, ip(v.Address, "after-"+c.name)))
			onHost.await(t, "after-"+c.name)
			if onHost.has(c.name) != c.passes {
				t.Errorf("the host saw the frame: %v, want %v", !c.passes, c.passes)
			}
		})
	}
}

// Frames for link-local multicast addresses skip the bridge's usual path, and the
// host takes them as received by the TAP.
func TestLinkLocalMulticastDoesNotReachTheHost(t *testing.T) {
	l := setUp(t, Config{})
	g, v := plug(t, l, 10)
	conn, err := net.ListenPacket("udp4", "0.0.0.0:9999")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	frame := ethernet(net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0x0e}, v.MAC, etherIPv4,
		udp(netip.AddrPortFrom(v.Address, 9), netip.AddrPortFrom(l.cfg.Network.Gateway, 9999), "from the guest"))
	// received sends the frame, then one from the host itself, and reports
	// whether the first one arrived.
	received := func() bool {
		g.Inject(t, frame)
		local, err := net.Dial("udp4", "127.0.0.1:9999")
		if err != nil {
			t.Fatal(err)
		}
		defer local.Close()
		if _, err := local.Write([]byte("from the host")); err != nil {
			t.Fatal(err)
		}
		guestToo := false
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		for buf := make([]byte, 64); ; {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			if string(buf[:n]) == "from the host" {
				return guestToo
			}
			guestToo = true
		}
	}
	if received() {
		t.Fatal("the frame reached the host")
	}
	// Control: each of two rules stops it; without both, it arrives.
	stopWatching(l)
	runNFT(t, "flush chain bridge hatch input")
	if received() {
		t.Fatal("the frame reached the host past the bridge table")
	}
	runNFT(t, "flush chain inet hatch input")
	if !received() {
		t.Fatal("the test is broken: without rules, the frame must arrive")
	}
}

func TestGuestsDoNotReachEachOther(t *testing.T) {
	l := setUp(t, Config{})
	a, va := plugAndConfigure(t, l, 10)
	b, vb := plugAndConfigure(t, l, 11)
	atB := newMarks()
	b.Sniff(t, atB.look)
	toB := netip.AddrPortFrom(vb.Address, 7)
	from := netip.AddrPortFrom(va.Address, 7)
	unicast := func(word string) []byte {
		return ethernet(vb.MAC, va.MAC, etherIPv4, udp(from, toB, mark(word)))
	}
	all := netip.AddrPortFrom(l.cfg.Network.Broadcast(), 7)
	group := netip.MustParseAddrPort("224.0.0.251:5353")
	frames := map[string][]byte{
		"unicast":   unicast("unicast"),
		"unknown":   ethernet(net.HardwareAddr{2, 9, 9, 9, 9, 9}, va.MAC, etherIPv4, udp(from, toB, mark("unknown"))),
		"broadcast": ethernet(broadcastMAC, va.MAC, etherIPv4, udp(from, all, mark("broadcast"))),
		"multicast": ethernet(net.HardwareAddr{1, 0, 0x5e, 0, 0, 251}, va.MAC, etherIPv4, udp(from, group, mark("multicast"))),
		"arp":       ethernet(broadcastMAC, va.MAC, etherARP, arp(1, va.MAC, va.Address, vb.Address, mark("arp"))),
		"routed":    ethernet(l.cfg.Network.MAC(l.cfg.Network.Gateway), va.MAC, etherIPv4, udp(from, toB, mark("routed"))),
	}
	for _, f := range frames {
		a.Inject(t, f)
	}
	hostCalls(t, toB, "from-host")
	atB.await(t, "from-host")
	for word := range frames {
		if atB.has(word) {
			t.Errorf("a guest's %s frame reached another guest", word)
		}
	}
	listen(t, b.Namespace, vb.Address.String()+":22")
	a.Do(t, func() error { return neighbour(vb.Address, vb.MAC) })
	refuses(t, a, vb.Address.String()+":22")

	// Control: without isolation and the rule behind it, the frame arrives.
	stopWatching(l)
	tap, err := netlink.LinkByName(va.Tap)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetIsolated(tap, false); err != nil {
		t.Fatal(err)
	}
	a.Inject(t, unicast("rule-only"))
	hostCalls(t, toB, "from-host-again")
	atB.await(t, "from-host-again")
	if atB.has("rule-only") {
		t.Error("a frame went from port to port although the rules forbid it")
	}
	runNFT(t, "flush chain bridge hatch forward")
	letBridgedPacketsPass(t)
	a.Inject(t, unicast("open"))
	atB.await(t, "open")
}

// letBridgedPacketsPass keeps bridged packets out of the inet table, which sees
// and stops them on some kernels.
func letBridgedPacketsPass(t testing.TB) {
	t.Helper()
	err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// hostCalls sends a marked datagram from the host to a guest.
func hostCalls(t testing.TB, to netip.AddrPort, word string) {
	t.Helper()
	conn, err := net.Dial("udp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(mark(word))); err != nil {
		t.Fatal(err)
	}
}

// neighbour gives a guest the MAC of another one, which ARP would not.
func neighbour(addr netip.Addr, mac net.HardwareAddr) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac,
	})
}

func runNFT(t testing.TB, command string) string {
	t.Helper()
	out, err := exec.Command("nft", command).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v: %s", command, err, out)
	}
	return string(out)
}
