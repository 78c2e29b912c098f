package dhcp

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// reply is a DHCP message on its way to one guest.
type reply struct {
	to      net.HardwareAddr // the frame's destination
	from    netip.Addr
	address netip.Addr // the packet's destination
	message []byte
}

// answer returns the reply to a packet, nil when it deserves none.
func (s *Server) answer(packet []byte) *reply {
	req, err := dhcpv4.FromBytes(packet)
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest || req.HWType != iana.HWTypeEthernet {
		return nil
	}
	if !req.GatewayIPAddr.IsUnspecified() {
		return nil // a relay's; there is none on this network
	}
	lease, known := s.lease(req.ClientHWAddr)
	if !known || !s.meant(req) {
		return nil
	}
	kind := responseTo(req, lease)
	if kind == dhcpv4.MessageTypeNone {
		return nil
	}
	msg, err := dhcpv4.NewReplyFromRequest(req, s.options(req, lease, kind)...)
	if err != nil {
		return nil
	}
	return &reply{
		to: lease.MAC, from: s.cfg.Network.Gateway,
		address: destination(req, lease, kind), message: msg.ToBytes(),
	}
}

// meant tells whether the request is for this server or for any.
func (s *Server) meant(req *dhcpv4.DHCPv4) bool {
	id := req.ServerIdentifier()
	return id == nil || id.Equal(s.gateway())
}

// responseTo says what kind of answer a request gets; None for no answer.
func responseTo(req *dhcpv4.DHCPv4, l Lease) dhcpv4.MessageType {
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeInform:
		return dhcpv4.MessageTypeAck
	case dhcpv4.MessageTypeRequest:
		wanted := req.RequestedIPAddress()
		if wanted == nil {
			wanted = req.ClientIPAddr
		}
		if wanted.Equal(l.Address.AsSlice()) {
			return dhcpv4.MessageTypeAck
		}
		return dhcpv4.MessageTypeNak
	}
	return dhcpv4.MessageTypeNone
}

// options are what the answer of this kind says.
func (s *Server) options(req *dhcpv4.DHCPv4, l Lease, kind dhcpv4.MessageType) []dhcpv4.Modifier {
	opts := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.gateway())),
	}
	if kind == dhcpv4.MessageTypeNak {
		return opts
	}
	n := s.cfg.Network
	opts = append(opts,
		dhcpv4.WithServerIP(s.gateway()),
		dhcpv4.WithNetmask(net.CIDRMask(n.Prefix.Bits(), 32)),
		dhcpv4.WithOption(dhcpv4.OptBroadcastAddress(n.Broadcast().AsSlice())),
		dhcpv4.WithRouter(s.gateway()),
		dhcpv4.WithDNS(s.gateway()),
	)
	if l.Hostname != "" {
		opts = append(opts, dhcpv4.WithOption(dhcpv4.OptHostName(l.Hostname)))
	}
	if s.cfg.MTU > 0 {
		mtu := dhcpv4.Uint16(s.cfg.MTU).ToBytes()
		opts = append(opts, dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, mtu)))
	}
	if req.MessageType() == dhcpv4.MessageTypeInform {
		return opts // who has an address already is told the rest only
	}
	return append(opts,
		dhcpv4.WithYourIP(l.Address.AsSlice()),
		dhcpv4.WithLeaseTime(uint32(s.cfg.LeaseTime.Seconds())),
	)
}

// destination is the address on the packet. A guest that cannot take packets
// for an address it does not have yet says so by the broadcast flag; the frame
// goes to its MAC all the same.
func destination(req *dhcpv4.DHCPv4, l Lease, kind dhcpv4.MessageType) netip.Addr {
	if kind == dhcpv4.MessageTypeNak || req.IsBroadcast() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return l.Address
}

func (s *Server) gateway() net.IP { return s.cfg.Network.Gateway.AsSlice() }
