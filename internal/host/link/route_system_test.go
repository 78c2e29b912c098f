//go:build system

package link

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/host/nettest"
)

func setForwarding(t testing.TB, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// offices makes two namespaces on two networks of the host, whose router it would be,
// and returns what tries to connect from one to the other.
func offices(t testing.TB) (connect func() error) {
	t.Helper()
	a, b := nettest.NewNamespace(t), nettest.NewNamespace(t)
	nettest.Wire(t, a, "office0", "203.0.113.1/28", "eth0", "203.0.113.2/28")
	nettest.Wire(t, b, "office1", "203.0.113.17/28", "eth0", "203.0.113.18/28")
	for ns, gateway := range map[*nettest.Namespace]string{a: "203.0.113.1", b: "203.0.113.17"} {
		ns.Do(t, func() error { return netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP(gateway)}) })
	}
	listen(t, b, "203.0.113.18:80")
	return func() error {
		return a.Try(func() error {
			conn, err := net.DialTimeout("tcp", "203.0.113.18:80", never)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
	}
}

func TestTheHostDoesNotBecomeARouter(t *testing.T) {
	setForwarding(t, "0")
	connect := offices(t)
	world := internet(t)
	l := setUp(t, Config{})
	if connect() == nil {
		t.Error("the host forwards between its own networks")
	}
	listen(t, world, "198.51.100.1:80")
	g, _ := plugAndConfigure(t, l, 10)
	if _, err := whoAmI(g, "198.51.100.1:80", soon); err != nil {
		t.Errorf("a guest does not reach the internet: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next := setUp(t, Config{}) // which finds forwarding on
	if connect() == nil {
		t.Error("the host forwards between its own networks after a restart of hatchd")
	}
	// Control: it is the rule that stops it.
	stopWatching(next)
	runNFT(t, "flush chain inet hatch forward")
	if err := connect(); err != nil {
		t.Fatalf("the test is broken: without the rule, too: %v", err)
	}
}

// Docker and libvirt route for their bridges, and may start after hatchd.
func TestTheBridgesOfOthersAreRouted(t *testing.T) {
	setForwarding(t, "0")
	a, b := nettest.NewNamespace(t), nettest.NewNamespace(t)
	nettest.Wire(t, a, "office0", "203.0.113.1/28", "eth0", "203.0.113.2/28")
	a.Do(t, func() error { return netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP("203.0.113.1")}) })
	setUp(t, Config{})
	nettest.Wire(t, b, "container0", "203.0.113.33/28", "eth0", "203.0.113.34/28")
	b.Do(t, func() error { return netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP("203.0.113.33")}) })
	for _, command := range []string{
		"link add containers type bridge", "addr flush dev container0", "addr add 203.0.113.33/28 dev containers",
		"link set container0 master containers", "link set containers up",
	} {
		if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
	listen(t, a, "203.0.113.2:80")
	listen(t, b, "203.0.113.34:80")
	for from, to := range map[*nettest.Namespace]string{b: "203.0.113.2:80", a: "203.0.113.34:80"} {
		if err := from.Try(func() error {
			conn, err := net.DialTimeout("tcp", to, soon)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}); err != nil {
			t.Errorf("%s is not reached: %v", to, err)
		}
	}
}

func TestARouterStaysOne(t *testing.T) {
	setForwarding(t, "1")
	connect := offices(t)
	l := setUp(t, Config{})
	if err := connect(); err != nil {
		t.Errorf("a host that was a router no longer is: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Teardown(); err != nil {
		t.Fatal(err)
	}
	if err := connect(); err != nil {
		t.Errorf("a host that was a router no longer is after the network is removed: %v", err)
	}
}

func TestTeardownTurnsForwardingOffAgain(t *testing.T) {
	setForwarding(t, "0")
	connect := offices(t)
	l := setUp(t, Config{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Teardown(); err != nil {
		t.Fatal(err)
	}
	if connect() == nil {
		t.Error("the host forwards between its own networks once hatchd's network is removed")
	}
}
