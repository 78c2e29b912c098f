//go:build system

package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

func testRules(t testing.TB, bridge string) *Rules {
	t.Helper()
	n, err := network.New(bridge, "10.128.0.1/16")
	if err != nil {
		t.Fatal(err)
	}
	r := New(Config{Network: n, AllowPrivate: prefixes("10.5.0.0/16")})
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		_ = exec.Command("nft", "flush", "ruleset").Run()
	})
	return r
}

func testGuest(r *Rules, host uint32) Guest {
	n := r.cfg.Network
	return Guest{TAP: fmt.Sprintf("htap%d", host), MAC: n.MAC(n.At(host)), Address: n.At(host)}
}

func nft(t testing.TB, command string) string {
	t.Helper()
	out, err := exec.Command("nft", command).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v: %s", command, err, out)
	}
	return string(out)
}

func TestSetupWithManyGuests(t *testing.T) {
	r := testRules(t, "hatch0")
	var guests []Guest
	for host := range uint32(3000) {
		guests = append(guests, testGuest(r, 10+host))
	}
	for range 2 { // twice: in place of what is there
		if err := r.Setup(State{Guests: guests, Local: prefixes("192.0.2.0/24")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Setup(State{Guests: guests[:1]}); err != nil {
		t.Fatal(err)
	}
	if err := r.verify(guests[1]); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a guest that is no longer there: %v, want ENOENT", err)
	}
}

func TestAddAndDelete(t *testing.T) {
	r := testRules(t, "hatch0")
	if err := r.Setup(State{}); err != nil {
		t.Fatal(err)
	}
	g := testGuest(r, 10)
	for range 2 {
		if err := r.Add(g); err != nil {
			t.Fatal(err)
		}
	}
	if rules := nft(t, "list set bridge hatch senders"); !strings.Contains(rules, `"htap10" . 02:fc:00:00:00:0a . 10.128.0.10`) {
		t.Errorf("the set is %s", rules)
	}
	nft(t, `delete element bridge hatch senders { "htap10" . 02:fc:00:00:00:0a . 10.128.0.10 }`)
	for range 2 { // half there, then not at all
		if err := r.Delete(g); err != nil {
			t.Fatal(err)
		}
	}
	if rules := nft(t, "list set bridge hatch stations"); strings.Contains(rules, "htap10") {
		t.Errorf("the set is %s", rules)
	}
}

func TestLimitsAreReplacedAndDeleted(t *testing.T) {
	r := testRules(t, "hatch0")
	g := testGuest(r, 10)
	g.Limits = Limits{In: 10_000_000_000, Out: 1 << 20}
	if err := r.Setup(State{Guests: []Guest{g}}); err != nil {
		t.Fatal(err)
	}
	g.Limits.Out = 2 << 20
	for range 2 {
		if err := r.Add(g); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Check(State{Guests: []Guest{g}}); err != nil {
		t.Error(err)
	}
	const want = "limit rate over 2 mbytes/second burst 64 kbytes drop"
	if rules := nft(t, "list chain bridge hatch limits_out-htap10"); strings.Count(rules, "limit rate") != 1 || !strings.Contains(rules, want) {
		t.Errorf("the chain is %s", rules)
	}
	nft(t, `delete element bridge hatch limits_in { "htap10" }`)
	if err := r.verify(g); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a limit that is not in force: %v, want ENOENT", err)
	}
	for range 2 { // half there, then not at all
		if err := r.Delete(g); err != nil {
			t.Fatal(err)
		}
	}
	if rules := nft(t, "list table bridge hatch"); strings.Contains(rules, "htap10") {
		t.Errorf("the table is %s", rules)
	}
}

func TestCheckNotices(t *testing.T) {
	changes := map[string]string{
		"no table":         "delete table inet hatch",
		"no bridge table":  "delete table bridge hatch",
		"flushed chain":    "flush chain bridge hatch guest",
		"rule more":        "insert rule inet hatch to_host tcp dport 22 accept",
		"chain more":       "add chain inet hatch extra",
		"range taken away": "delete element inet hatch refused { 169.254.0.0/16 }",
		"range let in":     "add element inet hatch allowed { 169.254.0.0/16 }",
		"guest let in":     `add element bridge hatch senders { "htap99" . 02:fc:00:00:00:63 . 10.128.0.99 }`,
		"guest shut out":   "flush set bridge hatch senders",
		"limit gone":       "flush chain bridge hatch limits_out-htap10",
		"limit not used":   "flush map bridge hatch limits_out",
		"network let in":   "flush set inet hatch local",
		"policy":           "add chain inet hatch input { policy drop; }",
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			r := testRules(t, "hatch0")
			g := testGuest(r, 10)
			g.Limits.Out = 1 << 20
			want := State{Guests: []Guest{g}, Local: prefixes("192.0.2.0/24")}
			if err := r.Setup(want); err != nil {
				t.Fatal(err)
			}
			nft(t, change)
			if err := r.Check(want); err == nil {
				t.Error("Check passes")
			}
			if err := r.Setup(want); err != nil {
				t.Errorf("Setup does not repair it: %v", err)
			}
		})
	}
}

// A rule may keep its comment and do something else.
func TestCheckNoticesAnotherRuleWithTheSameComment(t *testing.T) {
	r := testRules(t, "hatch0")
	if err := r.Setup(State{}); err != nil {
		t.Fatal(err)
	}
	nft(t, "flush chain bridge hatch forward")
	nft(t, fmt.Sprintf(`add rule bridge hatch forward iifgroup %d accept comment "never from port to port"`, r.cfg.Network.PortGroup()))
	if err := r.Check(State{}); err == nil {
		t.Error("Check passes with a rule that accepts what must be dropped")
	}
}

// A kernel that lacks timeouts for some connections gets the rules without them.
func TestRulesWithoutTimeouts(t *testing.T) {
	r := testRules(t, "hatch0")
	r.noTimeouts.Store(true)
	if err := r.Setup(State{}); err != nil {
		t.Fatal(err)
	}
	if rules := nft(t, "list ruleset"); strings.Contains(rules, "ct timeout") || !strings.Contains(rules, "ct count over") || r.ForgetsEarly() {
		t.Errorf("the rules are %s", rules)
	}
}

func TestTablesOfAnotherAreLeftAlone(t *testing.T) {
	first, second := testRules(t, "hatch0"), testRules(t, "hatch1")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "hatch0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := first.Setup(State{}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"Setup": second.Setup(State{}), "Remove": second.Remove()} {
		if errs.KindOf(err) != errs.Conflict {
			t.Errorf("%s: %v, want Conflict", name, err)
		}
	}
	if err := first.Check(State{}); err != nil {
		t.Error(err)
	}
	if err := netlink.LinkDel(bridge); err != nil {
		t.Fatal(err)
	}
	if err := second.Setup(State{}); err != nil {
		t.Errorf("tables of a deleted bridge are not replaced: %v", err)
	}
	nft(t, "flush ruleset")
	nft(t, "add table inet hatch")
	if err := first.Setup(State{}); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a foreign table: %v, want Conflict", err)
	}
}

func TestRemove(t *testing.T) {
	r := testRules(t, "hatch0")
	nft(t, "add table inet mine")
	if err := r.Setup(State{Guests: []Guest{testGuest(r, 10)}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if tables := nft(t, "list tables"); tables != "table inet mine\n" {
		t.Errorf("the tables are %q", tables)
	}
}

// TestRulesReadWell compares the kernel's rules in nft's own words.
func TestRulesReadWell(t *testing.T) {
	r := testRules(t, "hatch0")
	if err := r.Setup(State{Local: prefixes("192.0.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	rules := nft(t, "list ruleset")
	for _, want := range []string{
		`ip daddr @refused drop comment "not private ranges"`,
		`ip daddr 10.128.0.1 udp dport 53 accept comment "DNS"`,
		`ip saddr 10.128.0.0/16 oifname != "hatch0" masquerade`,
		`169.254.0.0/16`,
		`elements = { 192.0.2.0/24 }`,
		`elements = { 10.5.0.0/16 }`,
		`iifname . ether saddr . ip saddr @senders accept`,
	} {
		if !strings.Contains(rules, want) {
			t.Errorf("%s is missing in\n%s", want, rules)
		}
	}
}

func TestSetLocalReplaces(t *testing.T) {
	r := testRules(t, "hatch0")
	if err := r.Setup(State{Local: prefixes("192.0.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	if err := r.SetLocal(prefixes("203.0.113.0/24")); err != nil {
		t.Fatal(err)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	es, err := conn.GetSetElements(r.localSet())
	if err != nil || len(es) != 2 || netip.AddrFrom4([4]byte(es[1].Key)) != netip.MustParseAddr("203.0.113.0") &&
		netip.AddrFrom4([4]byte(es[0].Key)) != netip.MustParseAddr("203.0.113.0") {
		t.Errorf("the set is %v (%v)", es, err)
	}
}
