//go:build system

package link

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/bridge"
	"github.com/hatchvm/hatch/internal/host/nft"
	"github.com/hatchvm/hatch/internal/network"
)

// traces returns the host's entries for a VM.
func traces(t testing.TB, v network.Link) []string {
	t.Helper()
	var found []string
	for _, look := range []string{"ip link show", "ip neigh show", "bridge fdb show", "nft list ruleset"} {
		out, err := exec.Command("sh", "-c", look).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", look, err, out)
		}
		for _, word := range []string{v.Tap + "\"", v.Tap + ":", v.Tap + " ", v.MAC.String(), v.Address.String() + " "} {
			if strings.Contains(string(out), word) {
				found = append(found, look+" shows "+word)
			}
		}
	}
	return found
}

func TestDetachLeavesNothing(t *testing.T) {
	l := setUp(t, Config{})
	g, v := plugAndConfigure(t, l, 10)
	requestLease(t, g) // which is counted
	floodFrom(t, g, v, netip.AddrPortFrom(l.cfg.Network.Gateway, 53), 1)
	if len(traces(t, v)) < 4 {
		t.Fatalf("the test is broken: an attached VM shows only %q", traces(t, v))
	}
	g.Unplug() // the VMM is dead
	if err := l.Detach(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, v); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if err := l.Detach(t.Context(), v); err != nil {
		t.Errorf("a second Detach fails: %v", err)
	}
	if err := l.Check(); err != nil {
		t.Error(err)
	}
}

func TestDetachDeletesAnOpenTAP(t *testing.T) {
	l := setUp(t, Config{})
	_, v := plug(t, l, 10)
	if err := l.Detach(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, v); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestReattachAfterARestart(t *testing.T) {
	l := setUp(t, Config{})
	g, v := plug(t, l, 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// What a restart may find: a port that another program changed.
	tap, err := netlink.LinkByName(v.Tap)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetIsolated(tap, false); err != nil {
		t.Fatal(err)
	}

	next := setUp(t, Config{})
	if err := next.Setup(t.Context(), []network.Link{v}); err != nil {
		t.Fatal(err)
	}
	if err := next.Reattach(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	port, err := netlink.LinkGetProtinfo(tap)
	if err != nil || !port.Isolated || port.Learning || port.Flood {
		t.Errorf("the port is %+v (%v)", port, err)
	}
	if lease := requestLease(t, g); lease.ACK.YourIPAddr.String() != v.Address.String() {
		t.Errorf("got %s, want %s", lease.ACK.YourIPAddr, v.Address)
	}
}

func TestReattachOfAMissingTAP(t *testing.T) {
	l := setUp(t, Config{})
	v := testLink(l.cfg.Network, 10)
	if err := l.Reattach(t.Context(), v); errs.KindOf(err) != errs.NotFound {
		t.Errorf("got %v, want NotFound", err)
	}
}

func TestNetworkWorksWithoutTheDaemon(t *testing.T) {
	world := internet(t)
	l := setUp(t, Config{})
	g, _ := plugAndConfigure(t, l, 10)
	listen(t, world, "198.51.100.1:80")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := whoAmI(g, "198.51.100.1:80", soon); err != nil {
		t.Errorf("the internet is gone: %v", err)
	}
	if err := l.Check(); err == nil {
		t.Error("Check passes without DHCP and DNS")
	}
}

func TestTeardownLeavesNothing(t *testing.T) {
	l := setUp(t, Config{})
	_, v := plug(t, l, 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Teardown(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, v); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := net.InterfaceByName(l.cfg.Network.Bridge); err == nil {
		t.Error("the bridge is still there")
	}
	if out, _ := exec.Command("nft", "list", "tables").Output(); len(out) > 0 {
		t.Errorf("tables are left: %s", out)
	}
}

// A second Attach of a VM that is attached must not harm it.
func TestAttachOfATakenTAP(t *testing.T) {
	l := setUp(t, Config{})
	g, v := plug(t, l, 10)
	if _, err := l.Attach(t.Context(), v); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("got %v, want Conflict", err)
	}
	if lease := requestLease(t, g); lease.ACK.YourIPAddr.String() != v.Address.String() {
		t.Errorf("got %s, want %s", lease.ACK.YourIPAddr, v.Address)
	}
}

// failing makes one step of Attach fail after its work.
type failing struct {
	ports
	rules
	joined, added error
}

func (f *failing) Join(p bridge.Port) error {
	if err := f.ports.Join(p); err != nil {
		return err
	}
	return f.joined
}

func (f *failing) Add(g nft.Guest) error {
	if err := f.rules.Add(g); err != nil {
		return err
	}
	return f.added
}

// split resolves the methods that both parts have.
type failingPorts struct{ *failing }

func (f failingPorts) Check() error  { return f.ports.Check() }
func (f failingPorts) Remove() error { return f.ports.Remove() }

type failingRules struct{ *failing }

func (f failingRules) Check(s nft.State) error { return f.rules.Check(s) }
func (f failingRules) Remove() error           { return f.rules.Remove() }

func TestAFailedAttachLeavesNothing(t *testing.T) {
	broken := errors.New("injected")
	for name, f := range map[string]failing{"rules": {added: broken}, "port": {joined: broken}} {
		t.Run(name, func(t *testing.T) {
			l := setUp(t, Config{})
			stopWatching(l) // it uses the parts
			f.ports, f.rules = l.bridge, l.rules
			l.bridge, l.rules = failingPorts{&f}, failingRules{&f}
			v := testLink(l.cfg.Network, 10)
			if _, err := l.Attach(t.Context(), v); !errors.Is(err, broken) {
				t.Fatalf("got %v, want the injected error", err)
			}
			if left := traces(t, v); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if len(l.live) > 0 {
				t.Errorf("still in the list of live VMs: %v", l.live)
			}
		})
	}
}

func TestAFailedReattachClosesTheTAP(t *testing.T) {
	l := setUp(t, Config{})
	_, v := plug(t, l, 10)
	stopWatching(l) // it uses the parts
	f := &failing{ports: l.bridge, rules: l.rules, joined: errors.New("injected")}
	l.bridge = failingPorts{f}
	if err := l.Reattach(t.Context(), v); !errors.Is(err, f.joined) {
		t.Fatalf("got %v, want the injected error", err)
	}
	if out := runNFT(t, "list table bridge hatch"); strings.Contains(out, v.Tap) {
		t.Errorf("the guest may still send: %s", out)
	}
	if _, err := net.InterfaceByName(v.Tap); err != nil {
		t.Errorf("the TAP of a live VM was deleted: %v", err)
	}
}

// What another program changes is repaired as soon as the kernel reports it, without
// waiting for the next round of the watch.
func TestChangesOfOthersAreRepaired(t *testing.T) {
	ip := func(args ...string) func(testing.TB) {
		return func(t testing.TB) {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", args, err, out)
			}
		}
	}
	cases := map[string]func(testing.TB){
		"all rules":               ip("nft", "flush", "ruleset"),
		"one rule":                ip("nft", "flush", "chain", "bridge", "hatch", "forward"),
		"a guest is shut out":     ip("nft", "flush", "set", "bridge", "hatch", "senders"),
		"a stranger is let in":    ip("nft", "add", "element", "bridge", "hatch", "stations", `{ "htap99" . 02:fc:00:00:00:63 }`),
		"a port isolated no more": ip("bridge", "link", "set", "dev", "htap10", "isolated", "off"),
		"a port that learns":      ip("bridge", "link", "set", "dev", "htap10", "learning", "on"),
		"a port off the bridge":   ip("ip", "link", "set", "htap10", "nomaster"),
		"a port down":             ip("ip", "link", "set", "htap10", "down"),
		"the gateway's address":   ip("ip", "address", "flush", "dev", "hatch0"),
		"the bridge":              ip("ip", "link", "delete", "hatch0"),
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			l := setUp(t, Config{WatchEvery: time.Hour})
			g, v := plug(t, l, 10)
			change(t)
			awaitNil(t, l.Check)
			awaitNil(t, func() error { return isUp(l.cfg.Network.Bridge) })
			if lease := requestLease(t, g); lease.ACK.YourIPAddr.String() != v.Address.String() {
				t.Errorf("got %s, want %s", lease.ACK.YourIPAddr, v.Address)
			}
		})
	}
}

// What hatchd changes is no reason to read all rules back. The kernel names the thread.
func TestOwnChangesOfRulesAreToldFromOthers(t *testing.T) {
	l := setUp(t, Config{})
	conn, err := mdlayher.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		err = conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	foreign := func() bool { // reads the reports of one change
		for {
			messages, err := conn.Receive()
			if err != nil {
				t.Fatal(err)
			}
			const generation = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
			if byAnother(messages) {
				return true
			}
			if slices.ContainsFunc(messages, func(m mdlayher.Message) bool { return m.Header.Type == generation }) {
				return false
			}
		}
	}
	var threads sync.WaitGroup
	defer threads.Wait()
	release := make(chan struct{})
	defer close(release)
	for _, local := range []string{"192.0.2.0/24", "198.51.100.0/24"} {
		changed := make(chan error)
		threads.Go(func() { // of two threads at the same time, one is not the process's first
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			changed <- l.rules.SetLocal([]netip.Prefix{netip.MustParsePrefix(local)})
			<-release
		})
		if err := <-changed; err != nil {
			t.Fatal(err)
		}
		if foreign() {
			t.Error("a change of hatchd's counts as one of another program")
		}
	}
	runNFT(t, "add table inet another")
	if !foreign() {
		t.Error("a change of another program counts as one of hatchd's")
	}
}

// The kernel does not report all changes.
func TestTheWatchLooksByItselfToo(t *testing.T) {
	l := setUp(t, Config{WatchEvery: 10 * time.Millisecond})
	_, v := plug(t, l, 10)
	for _, args := range [][]string{
		{"bridge", "fdb", "del", v.MAC.String(), "dev", v.Tap, "master"},
		{"ip", "neigh", "del", v.Address.String(), "dev", l.cfg.Network.Bridge},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
		awaitNil(t, l.Check)
	}
}

func TestCheckFailsWhileTheNetworkIsBroken(t *testing.T) {
	l := setUp(t, Config{})
	_, v := plug(t, l, 10)
	stopWatching(l)
	tap, err := netlink.LinkByName(v.Tap)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetIsolated(tap, false); err != nil {
		t.Fatal(err)
	}
	if err := l.Check(); err == nil {
		t.Error("Check passes with a port that is not isolated")
	}
	f := &failing{ports: l.bridge, rules: l.rules, joined: errors.New("injected")}
	l.bridge = failingPorts{f}
	l.repairAndRemember()
	if err := l.Check(); !errors.Is(err, f.joined) {
		t.Errorf("after a failed repair: %v, want the injected error", err)
	}
	f.joined = nil
	l.repairAndRemember()
	if err := l.Check(); err == nil {
		return
	}
	l.repairAndRemember() // the failed one has joined the port
	if err := l.Check(); err != nil {
		t.Errorf("after a repair: %v", err)
	}
}

func TestANewNetworkOfTheHostIsClosedToGuests(t *testing.T) {
	world := internet(t)
	l := setUp(t, Config{WatchEvery: 10 * time.Millisecond})
	g, _ := plugAndConfigure(t, l, 10)
	// A public-looking network that the host joins later.
	world.Do(t, func() error { return addLoopbackAddress("203.0.113.9") })
	listen(t, world, "203.0.113.9:80")
	if _, err := whoAmI(g, "203.0.113.9:80", soon); err != nil {
		t.Fatalf("the test is broken: %v", err)
	}
	up, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("203.0.113.1/24")
	if err := netlink.AddrAdd(up, addr); err != nil {
		t.Fatal(err)
	}
	awaitNil(t, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if slices.Contains(l.local, netip.MustParsePrefix("203.0.113.0/24")) {
			return nil
		}
		return errors.New("the rules lack the new network")
	})
	refuses(t, g, "203.0.113.9:80")
}

// awaitNil repeats check until it passes.
func awaitNil(t testing.TB, check func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(soon)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

func TestTwentyAttachAtOnce(t *testing.T) {
	l := setUp(t, Config{})
	const count = 20
	taps := make([]*os.File, count)
	failed := make([]error, count)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() { taps[i], failed[i] = l.Attach(t.Context(), testLink(l.cfg.Network, uint32(10+i))) })
	}
	all.Wait()
	for i, err := range failed {
		if err != nil {
			t.Fatal(err)
		}
		defer taps[i].Close()
	}
	if err := l.Check(); err != nil {
		t.Error(err)
	}
	var leaving sync.WaitGroup
	for i := range count {
		leaving.Go(func() { failed[i] = l.Detach(t.Context(), testLink(l.cfg.Network, uint32(10+i))) })
	}
	leaving.Wait()
	for i, err := range failed {
		if err != nil {
			t.Error(err)
		}
		if left := traces(t, testLink(l.cfg.Network, uint32(10+i))); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	l := setUp(b, Config{})
	v := testLink(l.cfg.Network, 10)
	for b.Loop() {
		tap, err := l.Attach(b.Context(), v)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = tap.Close()
		if err := l.Detach(b.Context(), v); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkDetach(b *testing.B) {
	l := setUp(b, Config{})
	v := testLink(l.cfg.Network, 10)
	for b.Loop() {
		b.StopTimer()
		tap, err := l.Attach(b.Context(), v)
		if err != nil {
			b.Fatal(err)
		}
		_ = tap.Close()
		b.StartTimer()
		if err := l.Detach(b.Context(), v); err != nil {
			b.Fatal(err)
		}
	}
}
