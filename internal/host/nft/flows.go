package nft

import (
	"os"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/network"
)

// The kernel keeps an entry for each connection, in one table for the whole host.
// A full table takes the host off the network, so that guests get a share of it.

// setFlows counts the connections of each guest, by its address.
const setFlows = "flows"

// Bounds of a guest's share, in connections. The kernel walks a guest's connections
// for each new one, so that a larger share would cost the host too much.
const (
	minFlows = 1024
	maxFlows = 4096
)

// maxElements is more than there can be guests with an address: TAP names have five
// digits. A full set would count no further guest.
const maxElements = 1 << 17

// conntrackMax is the size of the host's table of connections, in entries.
const conntrackMax = "/proc/sys/net/netfilter/nf_conntrack_max"

// defaultFlows returns each guest's share so that all guests of the network together
// may have half of the host's table, within the bounds.
func defaultFlows(n network.Network) int {
	text, err := os.ReadFile(conntrackMax)
	if err != nil {
		return minFlows
	}
	size, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return minFlows
	}
	first, last := n.Hosts()
	return min(max(size/2/int(last-first+1), minFlows), maxFlows)
}

// timeout says how long the kernel remembers connections of one protocol.
type timeout struct {
	protocol byte
	name     string
	policy   expr.CtStatePolicyTimeout // in seconds
}

// timeouts are those of guests' connections. The kernel's own are far longer: five
// days for a TCP connection of which no more is heard.
var timeouts = []timeout{
	{unix.IPPROTO_TCP, "guest_tcp", expr.CtStatePolicyTimeout{
		expr.CtStateTCPSYNSENT: 30, expr.CtStateTCPSYNRECV: 30,
		expr.CtStateTCPESTABLISHED: 2*3600 + 240, // the least that RFC 5382 allows
		expr.CtStateTCPFINWAIT:     30, expr.CtStateTCPCLOSEWAIT: 60, expr.CtStateTCPLASTACK: 30,
		expr.CtStateTCPTIMEWAIT: 10, expr.CtStateTCPCLOSE: 10, expr.CtStateTCPSYNSENT2: 30,
		expr.CtStateTCPRETRANS: 60, expr.CtStateTCPUNACK: 60,
	}},
	{unix.IPPROTO_UDP, "guest_udp", expr.CtStatePolicyTimeout{
		expr.CtStateUDPUNREPLIED: 10, expr.CtStateUDPREPLIED: 120,
	}},
}

func (t timeout) object(table *nftables.Table) *nftables.NamedObj {
	return &nftables.NamedObj{
		Table: table, Name: t.name, Type: nftables.ObjTypeCtTimeout,
		Obj: &expr.CtTimeout{L3Proto: unix.NFPROTO_IPV4, L4Proto: t.protocol, Policy: t.policy},
	}
}

// ofFlows are the rules for packets of guests that begin a connection.
func (r *Rules) ofFlows() []rule {
	rules := []rule{{"no more connections than the guest's share", join(
		ctState(expr.CtStateBitNEW), ipv4(), []expr.Any{at(payloadIPv4Source, reg)}, overCount(setFlows, r.cfg.Flows), drop(),
	)}}
	if r.noTimeouts.Load() {
		return rules
	}
	for _, t := range timeouts {
		rules = append(rules, rule{"forgotten early: " + t.name, join(
			ctState(expr.CtStateBitNEW), l4(t.protocol), []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCtTimeout), Name: t.name}},
		)})
	}
	return rules
}

func (r *Rules) flows() *nftables.Set {
	first, last := r.cfg.Network.Hosts()
	return &nftables.Set{
		Table: r.inetTable(), Name: setFlows, KeyType: nftables.TypeIPAddr,
		Dynamic: true, Size: min(last-first+1, maxElements),
	}
}

// untracked are the chains that keep the connections of hatchd's own API on
// loopback out of the host's table: it must answer when that is full.
func (r *Rules) untracked() []chain {
	if r.cfg.APIPort == 0 {
		return nil
	}
	rules := func(loopback []expr.Any) []rule {
		return []rule{
			{"to hatchd's API", join(loopback, l4(unix.IPPROTO_TCP), port(r.cfg.APIPort), notrack())},
			{"from hatchd's API", join(loopback, l4(unix.IPPROTO_TCP), sourcePort(r.cfg.APIPort), notrack())},
		}
	}
	raw := *nftables.ChainPriorityRaw
	return []chain{
		{name: "untracked_in", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: raw, rules: rules(inBy("lo"))},
		{name: "untracked_out", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: raw, rules: rules(outBy("lo"))},
	}
}
