package dhcp

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// reply is a DHCP message for one guest.
type reply struct {
	to      net.HardwareAddr // the frame's destination
	from    netip.Addr
	address netip.Addr // the packet's destination
	message []byte
}

// answer returns the reply to a packet, nil when it gets none.
func (s *Server) answer(packet []byte) *reply {
	req, err := dhcpv4.FromBytes(packet)
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest || req.HWType != iana.HWTypeEthernet {
		return nil
	}
	if !req.GatewayIPAddr.IsUnspecified() {
		return nil // from a relay; this network has none
	}
	lease, known := s.lease(req.ClientHWAddr)
	if !known {
		return nil
	}
	if id := req.ServerIdentifier(); id != nil && !id.Equal(s.gateway()) {
		return nil // for another server
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

// responseTo returns the type of the reply to a request; None for no reply.
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

// options are the contents of a reply of this type.
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
		return opts // the guest has an address and asks for the rest
	}
	return append(opts,
		dhcpv4.WithYourIP(l.Address.AsSlice()),
		dhcpv4.WithLeaseTime(uint32(s.cfg.LeaseTime.Seconds())),
	)
}

// destination is the packet's destination. A guest that cannot receive packets for
// an address that it does not have yet sets the broadcast flag; the frame still
// goes to its MAC.
func destination(req *dhcpv4.DHCPv4, l Lease, kind dhcpv4.MessageType) netip.Addr {
	if kind == dhcpv4.MessageTypeNak || req.IsBroadcast() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return l.Address
}

func (s *Server) gateway() net.IP { return s.cfg.Network.Gateway.AsSlice() }
