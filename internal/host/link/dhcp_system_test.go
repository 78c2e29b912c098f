//go:build system

package link

import (
	"bytes"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

// wrongRequest is a request for an address that no guest has, which the server
// refuses; word is in the reply, too.
func wrongRequest(t testing.TB, chaddr []byte, word string) []byte {
	t.Helper()
	req, err := dhcpv4.New(
		dhcpv4.WithHwAddr(chaddr), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithBroadcast(true),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress([]byte{172, 16, 0, 99})),
	)
	if err != nil {
		t.Fatal(err)
	}
	copy(req.TransactionID[:], word)
	nowhere, everywhere := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return udp(netip.AddrPortFrom(nowhere, 68), netip.AddrPortFrom(everywhere, 67), string(req.ToBytes()))
}

func TestDHCPRepliesToTheTAPThatAsked(t *testing.T) {
	l := setUp(t, Config{})
	attacker, va := plug(t, l, 10)
	victim, vb := plugAndConfigure(t, l, 11)
	var refusals atomic.Int64
	heard := newMarks()
	victim.Sniff(t, func(frame []byte) {
		if bytes.Contains(frame, []byte("NAK!")) {
			refusals.Add(1)
		}
		heard.look(frame)
	})
	own := newMarks()
	attacker.Sniff(t, func(frame []byte) {
		if bytes.Contains(frame, []byte("OWN!")) {
			own.look([]byte(mark("refused")))
		}
	})
	forged := ethernet(broadcastMAC, va.MAC, etherIPv4, wrongRequest(t, vb.MAC, "NAK!"))
	for range 10 {
		attacker.Inject(t, forged)
	}
	// The server answers in turn: its reply to the attacker's own request comes last.
	attacker.Inject(t, ethernet(broadcastMAC, va.MAC, etherIPv4, wrongRequest(t, va.MAC, "OWN!")))
	own.await(t, "refused")
	hostCalls(t, netip.AddrPortFrom(vb.Address, 7), "after")
	heard.await(t, "after")
	if n := refusals.Load(); n > 0 {
		t.Errorf("%d replies to another guest's requests arrived", n)
	}

	// Control: without the rules for DHCP, one arrives.
	stopWatching(l)
	runNFT(t, "insert rule bridge hatch dhcp accept")
	attacker.Inject(t, forged)
	awaitNil(t, func() error {
		if refusals.Load() == 0 {
			return errNotYet
		}
		return nil
	})
}

func TestDHCPRequestsHaveARate(t *testing.T) {
	l := setUp(t, Config{})
	g, v := plugAndConfigure(t, l, 10)
	other, _ := plug(t, l, 11)
	onHost := newMarks()
	var requests atomic.Int64
	nettest.Sniff(t, nil, l.cfg.Network.Bridge, func(frame []byte) {
		if bytes.Contains(frame, []byte("FLOD")) {
			requests.Add(1)
		}
		onHost.look(frame)
	})
	const flood, burst, perSecond = 500, 20, 5
	began := time.Now()
	frame := ethernet(broadcastMAC, v.MAC, etherIPv4, wrongRequest(t, v.MAC, "FLOD"))
	for range flood {
		g.Inject(t, frame)
	}
	most := burst + perSecond*int64(time.Since(began).Seconds()+2)
	gateway := l.cfg.Network.Gateway
	g.Inject(t, ethernet(l.cfg.Network.MAC(gateway), v.MAC, etherIPv4, udp(netip.AddrPortFrom(v.Address, 9), netip.AddrPortFrom(gateway, 9), mark("after"))))
	onHost.await(t, "after")
	if n := requests.Load(); n < burst || n > most {
		t.Errorf("%d of %d requests reached the server, want %d to %d", n, flood, burst, most)
	}
	requestLease(t, other) // another TAP has a rate of its own
}

var errNotYet = errors.New("it has not arrived yet")
