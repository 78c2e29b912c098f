//go:build system

package link

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

func trafficOf(t *testing.T, l *Links, v network.Link) network.Traffic {
	t.Helper()
	n, err := l.Traffic(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTrafficIsTheGuests(t *testing.T) {
	l := setUp(t, Config{})
	g, v := plugAndConfigure(t, l, 10)
	before := trafficOf(t, l, v)

	const frames, payload = 50, 1000
	host := netip.AddrPortFrom(l.cfg.Network.Gateway, 9)
	frame := ethernet(l.cfg.Network.MAC(l.cfg.Network.Gateway), v.MAC, etherIPv4,
		udp(netip.AddrPortFrom(v.Address, 9), host, strings.Repeat("x", payload)))
	for range frames {
		g.Inject(t, frame)
	}
	sent := trafficOf(t, l, v)
	if got := sent.TxPackets - before.TxPackets; got < frames || got > frames+10 {
		t.Errorf("the guest sent %d packets, and %d are counted", frames, got)
	}
	if got, want := sent.TxBytes-before.TxBytes, uint64(frames*len(frame)); got < want || got > want+4096 {
		t.Errorf("the guest sent %d bytes, and %d are counted", want, got)
	}
	if got := sent.RxBytes - before.RxBytes; got > 4096 {
		t.Errorf("%d bytes are counted as received while the guest only sent", got)
	}

	world := internet(t)
	listen(t, world, "198.51.100.1:80")
	if _, err := whoAmI(g, "198.51.100.1:80", soon); err != nil {
		t.Fatal(err)
	}
	talked := trafficOf(t, l, v)
	if talked.RxPackets < sent.RxPackets+3 || talked.TxPackets < sent.TxPackets+3 {
		t.Errorf("a TCP connection is counted as %+v after %+v", talked, sent)
	}
	awaitNil(t, func() error { return asIPSays(trafficOf(t, l, v), v) }) // the connection's last packets may be on their way
}

// asIPSays compares with the TAP's counters as ip shows them, Rx with Tx.
func asIPSays(n network.Traffic, v network.Link) error {
	out, err := exec.Command("ip", "-json", "-statistics", "link", "show", "dev", v.Tap).Output()
	if err != nil {
		return err
	}
	type counters struct{ Bytes, Packets uint64 }
	var links []struct {
		Stats64 struct{ RX, TX counters }
	}
	if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
		return fmt.Errorf("ip says %s: %w", out, err)
	}
	tap := links[0].Stats64
	if received, sent := (counters{n.RxBytes, n.RxPackets}), (counters{n.TxBytes, n.TxPackets}); received != tap.TX || sent != tap.RX {
		return fmt.Errorf("the guest has received %+v and sent %+v, the TAP has received %+v and sent %+v", received, sent, tap.RX, tap.TX)
	}
	return nil
}

func TestTrafficCountsOnAfterARestart(t *testing.T) {
	l := setUp(t, Config{})
	_, v := plug(t, l, 10)
	before := trafficOf(t, l, v)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next := setUp(t, Config{})
	if err := next.Reattach(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	after := trafficOf(t, next, v)
	if after.RxBytes < before.RxBytes || after.TxBytes < before.TxBytes {
		t.Errorf("went back from %+v to %+v", before, after)
	}
}

func TestTrafficOfNoTAPOfOurs(t *testing.T) {
	l := setUp(t, Config{})
	v := testLink(l.cfg.Network, 10)
	for _, name := range []string{v.Tap, "lo", l.cfg.Network.Bridge} {
		v.Tap = name
		if n, err := l.Traffic(t.Context(), v); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}
