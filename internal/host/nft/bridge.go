package nft

import (
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of the bridge table's sets.
const (
	setSenders  = "senders"   // TAP, MAC and address of each guest
	setStations = "stations"  // TAP and MAC of each guest, for guests without an address yet
	setDHCPRate = "dhcp_rate" // requests of each TAP
)

// A guest asks for its address a few times in a minute, also when its network fails.
const (
	dhcpRate   = 5  // requests per second of a TAP
	dhcpBurst  = 20 // requests
	dhcpForget = time.Minute
)

// bridge is the table against forged senders. It matches TAPs by their interface
// group, so that a TAP whose guest is not in the sets passes nothing.
func (r *Rules) bridge(s State) table {
	group := r.cfg.Network.PortGroup()
	first, filter := nftables.ChainPriority(-300), nftables.ChainPriority(-200)
	return table{
		family: nftables.TableFamilyBridge,
		name:   r.cfg.Table,
		sets: []set{
			{set: r.senders(), elements: keys(s.Guests, senderKey)},
			{set: r.stations(), elements: keys(s.Guests, stationKey)},
			{set: r.sent(), late: r.limited(s.Guests, mapSent)},
			{set: r.received(), late: r.limited(s.Guests, mapReceived)},
			{set: r.dhcpRate()},
		},
		chains: []chain{
			{name: "dhcp", rules: r.ofDHCP()},
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
		// All requests: those of a guest with its address, too.
		{"DHCP", join(etherType(unix.ETH_P_IP), l4(unix.IPPROTO_UDP), port(67), jump("dhcp"))},
		{"IPv4 from the guest's own MAC and address", join(
			etherType(unix.ETH_P_IP), loadSender(payloadIPv4Source), in(setSenders), accept(),
		)},
		{"ARP from the guest's own MAC and address", join(
			etherType(unix.ETH_P_ARP), arpForEthernet(),
			loadSender(payloadARPSourceIP), in(setSenders),
			loadStation(payloadARPSourceMAC), in(setStations), accept(),
		)},
		{"nothing else", drop()},
	}
}

// ofDHCP are the rules for DHCP requests. The server replies to the hardware address
// in the request, which must therefore be that of the TAP. A fragment that is too
// short to have it matches none.
func (r *Rules) ofDHCP() []rule {
	own := join(loadStation(payloadDHCPHardware), in(setStations))
	fromAddress := join(loadSender(payloadIPv4Source), in(setSenders), own)
	return []rule{
		{"no more requests than a TAP's rate", join([]expr.Any{load(expr.MetaKeyIIFNAME, reg)}, overRate(setDHCPRate, dhcpRate, dhcpBurst, dhcpForget), drop())},
		{"from a guest without an address", join(
			loadStation(payloadEtherSource), in(setStations), own, fromUnsetToBroadcast(), ports(68, 67), accept(),
		)},
		{"to the gateway", join(fromAddress, destinationIs(r.cfg.Network.Gateway), accept())},
		{"to every server", join(fromAddress, destinationIs(broadcast), accept())},
		{"nothing else", drop()},
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (r *Rules) dhcpRate() *nftables.Set {
	return &nftables.Set{
		Table: r.bridgeTable(), Name: setDHCPRate, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		Dynamic: true, HasTimeout: true, Size: maxElements,
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
