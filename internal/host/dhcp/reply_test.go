package dhcp

import (
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/hatchvm/hatch/internal/network"
)

var (
	known   = net.HardwareAddr{2, 0xfc, 0, 0, 0, 10}
	unknown = net.HardwareAddr{2, 0xfc, 0, 0, 0, 99}
	its     = netip.MustParseAddr("172.16.0.10")
)

func testServer(t testing.TB) *Server {
	t.Helper()
	n, err := network.New("hatch0", "172.16.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Network: n, MTU: 1500, LeaseTime: time.Hour, Log: slog.New(slog.DiscardHandler)})
	s.Set(Lease{MAC: known, Address: its, Hostname: "web-1"})
	return s
}

func request(t testing.TB, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(known), dhcpv4.WithMessageType(kind)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func asking(ip string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(ip)))
}

func toServer(ip string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(ip)))
}

func TestReplyTypes(t *testing.T) {
	const none = dhcpv4.MessageTypeNone
	reply := func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply }
	cases := map[string]struct {
		request *dhcpv4.DHCPv4
		want    dhcpv4.MessageType
	}{
		"discover":                 {request(t, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer},
		"request":                  {request(t, dhcpv4.MessageTypeRequest, asking("172.16.0.10"), toServer("172.16.0.1")), dhcpv4.MessageTypeAck},
		"renewal":                  {request(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(its.AsSlice())), dhcpv4.MessageTypeAck},
		"request of another's":     {request(t, dhcpv4.MessageTypeRequest, asking("172.16.0.11")), dhcpv4.MessageTypeNak},
		"request of nothing":       {request(t, dhcpv4.MessageTypeRequest), dhcpv4.MessageTypeNak},
		"inform":                   {request(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(its.AsSlice())), dhcpv4.MessageTypeAck},
		"for another server":       {request(t, dhcpv4.MessageTypeRequest, asking("172.16.0.10"), toServer("172.16.0.2")), none},
		"discover of an unknown":   {request(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(unknown)), none},
		"release":                  {request(t, dhcpv4.MessageTypeRelease), none},
		"decline":                  {request(t, dhcpv4.MessageTypeDecline), none},
		"an answer":                {request(t, dhcpv4.MessageTypeOffer), none},
		"a reply":                  {request(t, dhcpv4.MessageTypeDiscover, reply), none},
		"by a relay":               {request(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(net.IPv4(172, 16, 0, 9))), none},
		"BOOTP without a type":     {request(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithoutOption(dhcpv4.OptionDHCPMessageType)), none},
		"a short hardware address": {request(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(known[:4])), none},
	}
	s := testServer(t)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := s.answer(c.request.ToBytes())
			got := none
			if r != nil {
				m, err := dhcpv4.FromBytes(r.message)
				if err != nil {
					t.Fatal(err)
				}
				got = m.MessageType()
				if m.TransactionID != c.request.TransactionID || r.to.String() != known.String() {
					t.Errorf("answer to %s, transaction %s", r.to, m.TransactionID)
				}
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestReplyContents(t *testing.T) {
	s := testServer(t)
	m, err := dhcpv4.FromBytes(s.answer(request(t, dhcpv4.MessageTypeDiscover).ToBytes()).message)
	if err != nil {
		t.Fatal(err)
	}
	options := []string{
		m.YourIPAddr.String(), m.ServerIPAddr.String(), m.ServerIdentifier().String(),
		net.IP(m.SubnetMask()).String(), m.BroadcastAddress().String(),
		m.Router()[0].String(), m.DNS()[0].String(), m.HostName(), m.IPAddressLeaseTime(0).String(),
	}
	want := "172.16.0.10 172.16.0.1 172.16.0.1 255.255.255.0 172.16.0.255 172.16.0.1 172.16.0.1 web-1 1h0m0s"
	if got := strings.Join(options, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if mtu := m.Options.Get(dhcpv4.OptionInterfaceMTU); string(mtu) != "\x05\xdc" {
		t.Errorf("MTU %x", mtu)
	}
}

func TestInformGetsNoLease(t *testing.T) {
	r := testServer(t).answer(request(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(its.AsSlice())).ToBytes())
	m, err := dhcpv4.FromBytes(r.message)
	if err != nil {
		t.Fatal(err)
	}
	if !m.YourIPAddr.IsUnspecified() || m.Options.Has(dhcpv4.OptionIPAddressLeaseTime) {
		t.Errorf("got %s", m.Summary())
	}
}

func TestDestination(t *testing.T) {
	s := testServer(t)
	plain := s.answer(request(t, dhcpv4.MessageTypeDiscover).ToBytes())
	flagged := s.answer(request(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true)).ToBytes())
	refused := s.answer(request(t, dhcpv4.MessageTypeRequest, asking("172.16.0.11")).ToBytes())
	for got, want := range map[netip.Addr]string{plain.address: "172.16.0.10", flagged.address: "255.255.255.255", refused.address: "255.255.255.255"} {
		if got.String() != want {
			t.Errorf("the packet goes to %s, want %s", got, want)
		}
	}
}

func TestDeletedLeaseGetsNoAnswer(t *testing.T) {
	s := testServer(t)
	s.Delete(known)
	s.Delete(known)
	if r := s.answer(request(t, dhcpv4.MessageTypeDiscover).ToBytes()); r != nil {
		t.Error("a guest without a lease got a reply")
	}
}

func TestPacketChecksums(t *testing.T) {
	for _, message := range []string{"even", "odd", ""} {
		r := &reply{from: netip.MustParseAddr("172.16.0.1"), address: its, message: []byte(message)}
		p, err := r.packet()
		if err != nil {
			t.Fatal(err)
		}
		// A sum over data that includes its own checksum is 0.
		if checksum(0, p[:ipHeader]) != 0 {
			t.Errorf("%q: bad IP checksum", message)
		}
		pseudo := append(append(r.from.AsSlice(), its.AsSlice()...), 0, 17, 0, byte(len(p)-ipHeader))
		if checksum(sum(0, pseudo), p[ipHeader:]) != 0 {
			t.Errorf("%q: bad UDP checksum", message)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(request(f, dhcpv4.MessageTypeDiscover).ToBytes())
	f.Add(request(f, dhcpv4.MessageTypeRequest, asking("172.16.0.11")).ToBytes())
	f.Add(request(f, dhcpv4.MessageTypeInform).ToBytes())
	s := testServer(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		r := s.answer(packet)
		if r == nil {
			return
		}
		if r.to.String() != known.String() || r.address != its && r.address.String() != "255.255.255.255" {
			t.Errorf("a reply to %s, %s", r.to, r.address)
		}
		m, err := dhcpv4.FromBytes(r.message)
		if err != nil {
			t.Fatalf("the reply cannot be parsed: %v", err)
		}
		if ip, ok := netip.AddrFromSlice(m.YourIPAddr.To4()); ok && ip != its && !ip.IsUnspecified() {
			t.Errorf("the guest is given %s", ip)
		}
		if len(r.message) > 1400 {
			t.Errorf("the reply has %d bytes", len(r.message))
		}
	})
}
