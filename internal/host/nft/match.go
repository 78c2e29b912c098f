package nft

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The functions here build rules: each returns the expressions of one condition or
// verdict, and a rule joins them. Conditions use register 1; a concatenated key
// uses the registers of 4 bytes that overlap with it: TAP (16 bytes from register
// 1), MAC (8 bytes), address.
const (
	reg      = unix.NFT_REG_1
	regMAC   = unix.NFT_REG_2
	regIP    = unix.NFT_REG32_00 + 6
	macBytes = 6
)

// Fields of a frame.
var (
	payloadEtherDest    = expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: 0, Len: macBytes}
	payloadEtherSource  = expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: 6, Len: macBytes}
	payloadEtherType    = expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2}
	payloadIPv4Source   = expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	payloadIPv4Dest     = expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	payloadIPv4Both     = expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 8}
	payloadARPHeader    = expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 6}
	payloadARPSourceMAC = expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: macBytes}
	payloadARPSourceIP  = expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 14, Len: 4}
	payloadPortSource   = expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2}
	payloadPortDest     = expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	payloadPorts        = expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 4}
	payloadDHCPHardware = expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 8 + 28, Len: macBytes} // chaddr
)

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func notrack() []expr.Any { return []expr.Any{&expr.Notrack{}} }

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func inBy(iface string) []expr.Any {
	return []expr.Any{load(expr.MetaKeyIIFNAME, reg), is(ifname(iface))}
}

func outBy(iface string) []expr.Any {
	return []expr.Any{load(expr.MetaKeyOIFNAME, reg), is(ifname(iface))}
}

func notOutBy(iface string) []expr.Any {
	return []expr.Any{load(expr.MetaKeyOIFNAME, reg), isNot(ifname(iface))}
}

// Keys that the library does not have, from the kernel's enum nft_meta_keys: the kind
// of the interface, as ip link shows it, which 16 bytes hold like a name.
const (
	metaInKind  expr.MetaKey = 26
	metaOutKind expr.MetaKey = 27
)

// ofBridge matches packets whose interface is a bridge. Network cards have no kind: a
// rule that loads it does not apply to them.
func ofBridge(kind expr.MetaKey) []expr.Any {
	return []expr.Any{load(kind, reg), is(ifname("bridge"))}
}

func inGroup(group uint32) []expr.Any {
	return []expr.Any{load(expr.MetaKeyIIFGROUP, reg), is(native32(group))}
}

func ipv4() []expr.Any {
	return []expr.Any{load(expr.MetaKeyNFPROTO, reg), is([]byte{unix.NFPROTO_IPV4})}
}

func notIPv4() []expr.Any {
	return []expr.Any{load(expr.MetaKeyNFPROTO, reg), isNot([]byte{unix.NFPROTO_IPV4})}
}

func l4(protocol byte) []expr.Any {
	return []expr.Any{load(expr.MetaKeyL4PROTO, reg), is([]byte{protocol})}
}

// port matches the destination port, after l4.
func port(number uint16) []expr.Any {
	return []expr.Any{at(payloadPortDest, reg), is(big16(number))}
}

// sourcePort matches the source port, after l4.
func sourcePort(number uint16) []expr.Any {
	return []expr.Any{at(payloadPortSource, reg), is(big16(number))}
}

// ports matches source and destination port, after l4.
func ports(source, destination uint16) []expr.Any {
	return []expr.Any{at(payloadPorts, reg), is(append(big16(source), big16(destination)...))}
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		masked(native32(bits)),
		isNot(native32(0)),
	}
}

func source(p netip.Prefix) []expr.Any {
	return join(ipv4(), []expr.Any{at(payloadIPv4Source, reg), masked(mask(p)), is(p.Masked().Addr().AsSlice())})
}

func sourceNot(p netip.Prefix) []expr.Any {
	return join(ipv4(), []expr.Any{at(payloadIPv4Source, reg), masked(mask(p)), isNot(p.Masked().Addr().AsSlice())})
}

func destination(a netip.Addr) []expr.Any {
	return join(ipv4(), destinationIs(a))
}

// destinationIs matches the destination of a packet that is known to be IPv4.
func destinationIs(a netip.Addr) []expr.Any {
	return []expr.Any{at(payloadIPv4Dest, reg), is(a.AsSlice())}
}

// destinationIn matches the destination address against a set.
func destinationIn(set string) []expr.Any {
	return join(ipv4(), []expr.Any{at(payloadIPv4Dest, reg)}, in(set))
}

// in matches the loaded value against a set.
func in(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: set}}
}

// overCount counts connections by the loaded value, and matches those above limit.
func overCount(set string, limit int) []expr.Any {
	return []expr.Any{&expr.Dynset{
		SrcRegKey: reg, SetName: set, Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{&expr.Connlimit{Count: uint32(limit), Flags: expr.NFT_CONNLIMIT_F_INV}},
	}}
}

// overRate counts packets by the loaded value, and matches those above a rate per
// second. A value that was not seen for the time that forget says begins anew.
func overRate(set string, perSecond uint64, burst uint32, forget time.Duration) []expr.Any {
	return []expr.Any{&expr.Dynset{
		SrcRegKey: reg, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: forget,
		Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Over: true, Burst: burst}},
	}}
}

// jumpBy jumps to the chain that a map has for the interface, if any.
func jumpBy(iface expr.MetaKey, chains string) []expr.Any {
	return []expr.Any{load(iface, reg), &expr.Lookup{SourceRegister: reg, SetName: chains, IsDestRegSet: true}}
}

func etherType(t uint16) []expr.Any {
	return []expr.Any{at(payloadEtherType, reg), is(big16(t))}
}

// arpForEthernet matches ARP's fixed header: Ethernet, IPv4, and their lengths.
func arpForEthernet() []expr.Any {
	return []expr.Any{at(payloadARPHeader, reg), is([]byte{0, 1, 8, 0, macBytes, 4})}
}

// fromUnsetToBroadcast matches 0.0.0.0 → 255.255.255.255.
func fromUnsetToBroadcast() []expr.Any {
	return []expr.Any{at(payloadIPv4Both, reg), is([]byte{0, 0, 0, 0, 255, 255, 255, 255})}
}

// toLinkLocal matches 01:80:c2:00:00:00 to 0f.
func toLinkLocal() []expr.Any {
	return []expr.Any{
		at(payloadEtherDest, reg),
		masked([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}),
		is([]byte{0x01, 0x80, 0xc2, 0, 0, 0}),
	}
}

// loadSender loads a key of the set of senders; ip is the field of the address.
func loadSender(ip expr.Payload) []expr.Any {
	return []expr.Any{load(expr.MetaKeyIIFNAME, reg), at(payloadEtherSource, regMAC), at(ip, regIP)}
}

// loadStation loads a key of the set of stations; mac is the field of the MAC.
func loadStation(mac expr.Payload) []expr.Any {
	return []expr.Any{load(expr.MetaKeyIIFNAME, reg), at(mac, regMAC)}
}

func load(key expr.MetaKey, register uint32) expr.Any {
	return &expr.Meta{Key: key, Register: register}
}

func at(field expr.Payload, register uint32) expr.Any {
	field.OperationType, field.DestRegister = expr.PayloadLoad, register
	return &field
}

func is(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func isNot(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

func masked(mask []byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)),
		Mask: mask, Xor: make([]byte, len(mask)),
	}
}

func mask(p netip.Prefix) []byte {
	return binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func big16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
