//go:build system

package e2e

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/test/sandbox"
)

func testDistinct(t *testing.T, w *world) {
	a, b := w.shared(t, alpha), w.shared(t, beta)
	requireDistinct(t, []api.VM{a, b})
	for _, v := range []api.VM{a, b} {
		s := w.login(t, v)
		if got := s.run(t, "ip -4 -o addr show scope global | awk '{ print $4 }'"); got != v.GuestIP+"/24" {
			t.Errorf("%s has address %q, the API says %s", v.Name, got, v.GuestIP)
		}
		if got := s.run(t, "cat /sys/class/net/e*/address"); !strings.EqualFold(got, v.GuestMAC) {
			t.Errorf("%s has MAC %q, the API says %s", v.Name, got, v.GuestMAC)
		}
		if !strings.HasPrefix(v.GuestMAC, "02:FC:") {
			t.Errorf("%s has MAC %s, which does not follow from its address", v.Name, v.GuestMAC)
		}
	}
	if a, b := w.login(t, a), w.login(t, b); a.hostKey == b.hostKey {
		t.Errorf("both guests have the SSH host key %s", a.hostKey)
	}
}

// requireDistinct checks that no two VMs share an address, MAC, TAP or SSH port.
func requireDistinct(t *testing.T, vms []api.VM) {
	t.Helper()
	seen := map[string]string{}
	for _, v := range vms {
		for _, own := range []string{"address " + v.GuestIP, "MAC " + v.GuestMAC, "TAP " + v.TapName, "SSH port " + strconv.Itoa(v.SSHPort)} {
			if other, taken := seen[own]; taken {
				t.Errorf("%s and %s both have %s", v.ID, other, own)
			}
			seen[own] = v.ID
		}
		if v.GuestIP == "" || v.GuestMAC == "" || v.TapName == "" || v.SSHPort == 0 {
			t.Errorf("%s lacks an address, a MAC, a TAP or an SSH port: %+v", v.ID, v)
		}
	}
}

func testInternet(t *testing.T, w *world) {
	s := w.login(t, w.shared(t, alpha))
	if got := s.run(t, "timeout 10 bash -c 'exec 3<>/dev/tcp/%s/80; cat <&3'", internetAddr); got != "hello "+uplinkAddr {
		t.Errorf("the internet greets with %q, want the host's address", got)
	}
	if got := s.run(t, "getent ahostsv4 %s | awk 'NR == 1 { print $1 }'", knownName); got != internetAddr {
		t.Errorf("%s resolves to %q, want %s", knownName, got, internetAddr)
	}
	if !w.sends(t, s, internetAddr, 80, func() bool { return w.internet.hasHeard("to " + internetAddr) }) {
		t.Error("a datagram to the internet does not arrive")
	}
}

// sends sends a datagram from the guest and reports whether it arrives.
func (w *world) sends(t *testing.T, s *shell, addr string, port int, arrived func() bool) bool {
	t.Helper()
	s.run(t, "echo -n 'to %s' >/dev/udp/%s/%d || true", addr, addr, port)
	return sandbox.Poll(time.Second, func() (bool, error) { return arrived(), nil }) == nil
}

// target is an address that a guest must not reach.
type target struct {
	name, addr string
	port       int

	fromHost, fromGuest bool // whether it answers
}

func testIsolation(t *testing.T, w *world) {
	a, b := w.shared(t, alpha), w.shared(t, beta)
	s := w.login(t, a)
	gateway := s.run(t, "ip -4 route show default | awk '{ print $3 }'")
	targets := []target{
		{name: "another guest", addr: b.GuestIP, port: 22},
		{name: "the host's API at the gateway", addr: gateway, port: apiPort},
		{name: "the host's API at its other address", addr: uplinkAddr, port: apiPort},
		{name: "another guest's SSH port", addr: gateway, port: b.SSHPort},
		{name: "its own SSH port on the host", addr: uplinkAddr, port: a.SSHPort},
		{name: "the metadata address", addr: metadataAddr, port: 80},
		{name: "a neighbour of the host", addr: neighbourAddr, port: 80},
		{name: "a private address beyond the host", addr: privateAddr, port: 80},
	}
	var all sync.WaitGroup // refusals take long, because packets are dropped
	for i := range targets {
		to := &targets[i]
		all.Go(func() {
			to.fromHost, to.fromGuest = connectsFromHere(to.addr, to.port), s.connects(t, to.addr, to.port)
		})
	}
	all.Wait()
	for _, to := range targets {
		t.Run(to.name, func(t *testing.T) {
			if !to.fromHost {
				t.Errorf("%s port %d does not answer even the host: the test shows nothing", to.addr, to.port)
			}
			if to.fromGuest {
				t.Errorf("a guest reaches %s port %d", to.addr, to.port)
			}
		})
	}
	if !s.connects(t, internetAddr, 80) {
		t.Error("the guest reaches nothing: the test shows nothing")
	}
	w.requireNoDatagrams(t, s, gateway)
	w.requireNoIPv6(t, s, w.login(t, b))
}

func connectsFromHere(addr string, port int) bool {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, strconv.Itoa(port)), normalReply)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// requireNoDatagrams checks that the host's UDP ports are out of reach.
func (w *world) requireNoDatagrams(t *testing.T, s *shell, gateway string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "0.0.0.0:9999")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	s.run(t, "echo -n hello >/dev/udp/%s/9999 || true", gateway)
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, from, err := conn.ReadFrom(buf); err == nil {
		t.Errorf("the host got a datagram from guest %s: %q", from, buf[:n])
	}
}

// requireNoIPv6 checks that link-local addresses do not bypass the rules.
func (w *world) requireNoIPv6(t *testing.T, from, to *shell) {
	t.Helper()
	link := from.run(t, "basename /sys/class/net/e*")
	targets := map[string]int{}
	if addr := to.run(t, "ip -6 -o addr show scope link | awk '{ sub(\"/.*\", \"\", $4); print $4; exit }'"); addr != "" {
		targets[addr] = 22
	}
	for _, addr := range hostLinkLocal(t) {
		targets[addr] = apiPort
	}
	for addr, port := range targets {
		if from.connects(t, addr+"%"+link, port) {
			t.Errorf("a guest reaches %s port %d over IPv6", addr, port)
		}
	}
}

func hostLinkLocal(t *testing.T) []string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() == nil && ip.IP.IsLinkLocalUnicast() {
			found = append(found, ip.IP.String())
		}
	}
	return found
}

// testSpoofing gives a guest an address that is not its own.
func testSpoofing(t *testing.T, w *world) {
	v := w.shared(t, beta)
	s := w.login(t, v)
	link := s.run(t, "basename /sys/class/net/e*")
	connect := func(source string) int {
		_, status := s.try(t, fmt.Sprintf(`timeout 8 python3 -c '
import socket
s = socket.socket()
s.settimeout(4)
s.bind(("%s", 0))
s.connect(("%s", 80))'`, source, internetAddr))
		return status
	}
	if connect(v.GuestIP) != 0 {
		t.Fatal("the guest cannot connect from its own address: the test shows nothing")
	}
	const foreign = "172.16.0.200"
	s.run(t, "sudo ip addr add %s/24 dev %s", foreign, link)
	defer s.run(t, "sudo ip addr del %s/24 dev %s", foreign, link)
	before := len(w.internet.seen())
	if connect(foreign) == 0 {
		t.Errorf("a guest connects from %s, which is not its address", foreign)
	}
	if more := w.internet.seen()[before:]; len(more) > 0 {
		t.Errorf("the internet was reached by %v", more)
	}
}

// testAllowedClients connects to an SSH port from the host and from outside.
func testAllowedClients(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	if !slices.Contains(listening(t), v.SSHPort) {
		t.Fatalf("SSH port %d has no listener", v.SSHPort)
	}
	if banner := readBanner(t, "127.0.0.1", v.SSHPort); !strings.HasPrefix(banner, "SSH-2.0-") {
		t.Errorf("from the host, the SSH port says %q", banner)
	}
	onInternet(t, func() error {
		if banner := readBanner(t, uplinkAddr, v.SSHPort); banner != "" {
			t.Errorf("from outside, the SSH port says %q", banner)
		}
		return nil
	})
}

// readBanner returns the first bytes that a port sends, "" for none.
func readBanner(t *testing.T, addr string, port int) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, strconv.Itoa(port)), normalReply)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(normalReply)); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 64)
	n, _ := conn.Read(buf) // the end without a byte is an answer, too
	return string(buf[:n])
}
