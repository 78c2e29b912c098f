package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of the bridge table's sets.
const (
	setSenders  = "senders"  // TAP, MAC and address of each guest
	setStations = "stations" // TAP and MAC of each guest, for guests without an address yet
)

// bridge is the table against forged senders. It matches TAPs by their interface
// group, so that a TAP whose guest is not in the sets passes nothing.
func (r *Rules) bridge() table {
	group := r.cfg.Network.PortGroup()
	first, filter := nftables.ChainPriority(-300), nftables.ChainPriority(-200)
	return table{
		family: nftables.TableFamilyBridge,
		name:   r.cfg.Table,
		sets:   []set{{r.senders(), nil}, {r.stations(), nil}, {r.sent(), nil}, {r.received(), nil}},
		chains: []chain{
			{name: "guest", rules: r.fromTAP()},
			{
				name: "prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: first,
				rules: []rule{
					{"what a guest sends, within its limit", jumpBy(expr.MetaKeyIIFNAME, mapSent)},
					{"from a TAP", join(inGroup(group), jump("guest"))},
				},
			},
			{
				name: "postrouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting, priority: filter,
				rules: []rule{{"what a guest receives, within its limit", jumpBy(expr.MetaKeyOIFNAME, mapReceived)}},
			},
			{
				// Frames to these addresses skip the prerouting hook, and the
				// bridge passes them to the host as received by the TAP.
				name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: filter,
				rules: []rule{{"no link-local multicast", join(inGroup(group), toLinkLocal(), drop())}},
			},
			{
				name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: filter,
				rules: []rule{{"never from port to port", join(inGroup(group), drop())}},
			},
		},
	}
}

// fromTAP are the rules for frames that a guest sends. A frame with a VLAN tag
// has another EtherType and matches none.
func (r *Rules) fromTAP() []rule {
	return []rule{
		{"IPv4 from the guest's own MAC and address", join(
			etherType(unix.ETH_P_IP), loadSender(payloadIPv4Source), in(setSenders), accept(),
		)},
		{"ARP from the guest's own MAC and address", join(
			etherType(unix.ETH_P_ARP), arpForEthernet(),
			loadSender(payloadARPSourceIP), in(setSenders),
			loadStation(payloadARPSourceMAC), in(setStations), accept(),
		)},
		{"DHCP from a guest without an address", join(
			etherType(unix.ETH_P_IP), loadStation(payloadEtherSource), in(setStations),
			fromUnsetToBroadcast(), l4(unix.IPPROTO_UDP), ports(68, 67), accept(),
		)},
		{"nothing else", drop()},
	}
}

func (r *Rules) senders() *nftables.Set {
	return &nftables.Set{
		Table: r.bridgeTable(), Name: setSenders, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr),
	}
}

func (r *Rules) stations() *nftables.Set {
	return &nftables.Set{
		Table: r.bridgeTable(), Name: setStations, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr),
	}
}

func (r *Rules) bridgeTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyBridge, Name: r.cfg.Table}
}
