//go:build system

package link

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/vmm"
)

// rate is the guest's limit in bytes per second; atOnce is its burst in bytes.
const (
	rate   = 64 << 10
	atOnce = 2 * rate
)

func TestLimitsApply(t *testing.T) {
	l := setUp(t, Config{})
	v := testLink(l.cfg.Network, 10)
	v.In, v.Out = vmm.NetworkLimit{BytesPerSecond: rate}, vmm.NetworkLimit{BytesPerSecond: rate}
	g := plugAs(t, l, v)
	g.Configure(t, netip.PrefixFrom(v.Address, 24), l.cfg.Network.Gateway)

	const frames = 1000
	payload := strings.Repeat("x", 1000)
	frame := ethernet(l.cfg.Network.MAC(l.cfg.Network.Gateway), v.MAC, etherIPv4,
		udp(netip.AddrPortFrom(v.Address, 9), netip.AddrPortFrom(l.cfg.Network.Gateway, 9), payload))
	began, before := time.Now(), received(t, l.cfg.Network.Bridge)
	for range frames {
		g.Inject(t, frame)
	}
	requireLimited(t, "sent", received(t, l.cfg.Network.Bridge)-before, began)

	conn, err := net.Dial("udp", netip.AddrPortFrom(v.Address, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	began, before = time.Now(), trafficOf(t, l, v).RxBytes
	for range frames {
		_, _ = conn.Write([]byte(payload)) // the guest refuses them, which the next one is told
	}
	requireLimited(t, "received", trafficOf(t, l, v).RxBytes-before, began)

	if err := l.Detach(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nft", "list", "ruleset").Output(); err != nil || strings.Contains(string(out), v.Tap) {
		t.Errorf("once it is detached there are %s, %v", out, err)
	}
}

// received counts the bytes that the host received from an interface.
func received(t *testing.T, name string) uint64 {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.RxBytes
}

// requireLimited checks that at least the burst has passed, and at most what the
// limit allows until now.
func requireLimited(t *testing.T, what string, passed uint64, began time.Time) {
	t.Helper()
	if most := atOnce + uint64(rate*(time.Since(began).Seconds()+1)); passed < rate || passed > most {
		t.Errorf("the guest has %s %d bytes; from %d to %d are right", what, passed, rate, most)
	}
}

func TestLimitsStay(t *testing.T) {
	l := setUp(t, Config{WatchEvery: 10 * time.Millisecond})
	v := testLink(l.cfg.Network, 10)
	v.Out = vmm.NetworkLimit{BytesPerSecond: rate}
	plugAs(t, l, v)
	limited := func() error {
		out, err := exec.Command("nft", "list", "chain", "bridge", "hatch", "limits_out-"+v.Tap).CombinedOutput()
		if err == nil && !strings.Contains(string(out), "limit rate over 64 kbytes/second") {
			err = fmt.Errorf("the chain is %s", out)
		}
		return err
	}
	if err := exec.Command("nft", "flush", "ruleset").Run(); err != nil {
		t.Fatal(err)
	}
	awaitNil(t, limited)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next := setUp(t, Config{})
	if err := limited(); err == nil {
		t.Error("a network that was set up without the VM limits it")
	}
	if err := next.Reattach(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if err := limited(); err != nil {
		t.Error(err)
	}
}
