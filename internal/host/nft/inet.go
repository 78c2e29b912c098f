package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of the inet table's sets.
const (
	setBridge  = "bridge"  // the bridge that the rules are for
	setAllowed = "allowed" // private ranges that guests may reach
	setRefused = "refused" // ranges that guests may not reach
	setLocal   = "local"   // networks that the host is on
)

// refused are the ranges that are not the internet.
var refused = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15",
	"224.0.0.0/4", "240.0.0.0/4",
)

// inet is the table that says what guests may reach and what may reach them. Its
// filters run before those of other tables, which may still drop what they accept.
func (r *Rules) inet(s State) table {
	n := r.cfg.Network
	early, srcNAT := nftables.ChainPriority(-10), *nftables.ChainPriorityNATSource
	return table{
		family: nftables.TableFamilyINet,
		name:   r.cfg.Table,
		sets: []set{
			{set: r.bridgeSet(), elements: []nftables.SetElement{{Key: ifname(n.Bridge)}}},
			{set: r.intervalSet(setAllowed), elements: intervals(r.cfg.AllowPrivate)},
			{set: r.intervalSet(setRefused), elements: intervals(refused)},
			{set: r.localSet(), elements: intervals(s.Local)},
			{set: r.flows()},
		},
		objects: r.timeoutObjects(),
		chains: append(r.untracked(), []chain{
			{name: "flows", rules: r.ofFlows()},
			{name: "to_host", rules: r.toHost()},
			{name: "from_guest", rules: r.fromGuest()},
			{
				name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: early,
				rules: []rule{
					{"a TAP's frames come in by the bridge only", join(inGroup(n.PortGroup()), drop())},
					{"guests to the host", join(inBy(n.Bridge), jump("to_host"))},
				},
			},
			{
				name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: early,
				rules: r.forwarded(s),
			},
			{
				name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: srcNAT,
				rules: []rule{
					{"guests go out under the host's address", join(source(n.Prefix), notOutBy(n.Bridge), masquerade())},
				},
			},
		}...),
	}
}

func (r *Rules) timeoutObjects() []*nftables.NamedObj {
	if r.noTimeouts.Load() {
		return nil
	}
	var objects []*nftables.NamedObj
	for _, t := range timeouts {
		objects = append(objects, t.object(r.inetTable()))
	}
	return objects
}

// forwarded are the rules for packets that the host passes on.
func (r *Rules) forwarded(s State) []rule {
	n := r.cfg.Network
	rules := []rule{
		{"a TAP's frames come in by the bridge only", join(inGroup(n.PortGroup()), drop())},
		{"guests to elsewhere", join(inBy(n.Bridge), jump("from_guest"))},
		{"answers to guests", join(outBy(n.Bridge), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())},
		{"no other packets to guests", join(outBy(n.Bridge), drop())},
	}
	if s.NoRouting {
		rules = append(rules,
			rule{"from the bridges of others", join(ofBridge(metaInKind), accept())},
			rule{"to the bridges of others", join(ofBridge(metaOutKind), accept())},
			rule{noRouting, join(ipv4(), drop())})
	}
	return rules
}

// noRouting is the rule without which forwarding, which guests need, would make a
// router between its own networks of a host that was none. Bridges are left out: they
// are those of containers and of other VMs, whose programs route for them. Docker, for
// one, finds forwarding switched on if it starts after hatchd.
const noRouting = "the host is no router between its other networks"

// toHost are the rules for packets from guests to the host itself.
func (r *Rules) toHost() []rule {
	n := r.cfg.Network
	return []rule{
		{"no IPv6", join(notIPv4(), drop())},
		{"DHCP", join(l4(unix.IPPROTO_UDP), port(67), accept())},
		{"guests' own addresses only", join(sourceNot(n.Prefix), drop())},
		{"answers to the host", join(ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())},
		{"the guest's share of the host's connections", jump("flows")},
		{"DNS", join(destination(n.Gateway), l4(unix.IPPROTO_UDP), port(53), accept())},
		{"DNS over TCP", join(destination(n.Gateway), l4(unix.IPPROTO_TCP), port(53), accept())},
		{"nothing else of the host", drop()},
	}
}

// fromGuest are the rules for packets from guests to elsewhere. They apply to
// every packet, so that a change ends existing connections too.
func (r *Rules) fromGuest() []rule {
	n := r.cfg.Network
	return []rule{
		{"no IPv6", join(notIPv4(), drop())},
		{"not to other guests", join(outBy(n.Bridge), drop())},
		{"guests' own addresses only", join(sourceNot(n.Prefix), drop())},
		{"packets of no connection", join(ctState(expr.CtStateBitINVALID), drop())},
		{"the guest's share of the host's connections", jump("flows")},
		{"private ranges the operator allows", join(destinationIn(setAllowed), accept())},
		{"not private ranges", join(destinationIn(setRefused), drop())},
		{"not the host's own networks", join(destinationIn(setLocal), drop())},
		{"the internet", accept()},
	}
}

func (r *Rules) bridgeSet() *nftables.Set {
	return &nftables.Set{Table: r.inetTable(), Name: setBridge, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

func (r *Rules) localSet() *nftables.Set { return r.intervalSet(setLocal) }

func (r *Rules) intervalSet(name string) *nftables.Set {
	return &nftables.Set{Table: r.inetTable(), Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
}

func (r *Rules) inetTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: r.cfg.Table}
}

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}
