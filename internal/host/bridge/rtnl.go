package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// portFlags are the settings of a bridge port that isolate it.
type portFlags struct {
	isolated       bool // no frames to or from other isolated ports
	learning       bool // learn addresses from incoming frames
	unicastFlood   bool // receive frames for unknown addresses
	multicastFlood bool
	broadcastFlood bool
	hairpin        bool // receive its own frames
	proxyARP       bool
}

// guestPort is how a guest's port must be set. Broadcasts of the host reach it.
var guestPort = portFlags{isolated: true, broadcastFlood: true}

// portState is the state of a port as the kernel reports it.
type portState struct {
	master int
	group  uint32
	mtu    int
	up     bool
	flags  portFlags
}

// enslave sets master, group and MTU in one step.
func enslave(index, master int, group uint32, mtu int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func setPortFlags(index int, f portFlags) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for attr, on := range f.attributes() {
		value := []byte{0}
		if *on {
			value[0] = 1
		}
		port.AddRtAttr(int(attr), value)
	}
	req.AddData(port)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// attributes maps the kernel's numbers to the fields.
func (f *portFlags) attributes() map[uint16]*bool {
	return map[uint16]*bool{
		nl.IFLA_BRPORT_ISOLATED:      &f.isolated,
		nl.IFLA_BRPORT_LEARNING:      &f.learning,
		nl.IFLA_BRPORT_UNICAST_FLOOD: &f.unicastFlood,
		nl.IFLA_BRPORT_MCAST_FLOOD:   &f.multicastFlood,
		nl.IFLA_BRPORT_BCAST_FLOOD:   &f.broadcastFlood,
		nl.IFLA_BRPORT_MODE:          &f.hairpin,
		nl.IFLA_BRPORT_PROXYARP:      &f.proxyARP,
	}
}

// readPort reads a port's state in one request.
func readPort(index int) (portState, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	replies, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return portState{}, err
	}
	if len(replies) != 1 || len(replies[0]) < unix.SizeofIfInfomsg {
		return portState{}, fmt.Errorf("%d replies to a request about one interface", len(replies))
	}
	return parsePort(replies[0])
}

func parsePort(reply []byte) (portState, error) {
	var s portState
	s.up = nl.DeserializeIfInfomsg(reply).Flags&unix.IFF_UP != 0
	attrs, err := nl.ParseRouteAttr(reply[unix.SizeofIfInfomsg:])
	if err != nil {
		return portState{}, err
	}
	for _, a := range attrs {
		switch {
		case a.Attr.Type == unix.IFLA_LINKINFO:
			if err := s.flags.parse(a.Value); err != nil {
				return portState{}, err
			}
		case len(a.Value) < 4:
		case a.Attr.Type == unix.IFLA_MASTER:
			s.master = int(binary.NativeEndian.Uint32(a.Value))
		case a.Attr.Type == unix.IFLA_GROUP:
			s.group = binary.NativeEndian.Uint32(a.Value)
		case a.Attr.Type == unix.IFLA_MTU:
			s.mtu = int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return s, nil
}

// parse reads the port's flags from an interface's link info. A flag that this
// kernel lacks is an error.
func (f *portFlags) parse(linkInfo []byte) error {
	data, err := child(linkInfo, nl.IFLA_INFO_SLAVE_DATA)
	if err != nil {
		return err
	}
	for attr, on := range f.attributes() {
		value, err := child(data, attr)
		if err != nil || len(value) < 1 {
			return fmt.Errorf("the kernel does not know port attribute %d", attr)
		}
		*on = value[0] != 0
	}
	return nil
}

// child returns the value of one nested attribute.
func child(nested []byte, attr uint16) ([]byte, error) {
	attrs, err := nl.ParseRouteAttr(nested)
	if err != nil {
		return nil, err
	}
	for _, a := range attrs {
		if a.Attr.Type&^unix.NLA_F_NESTED == attr {
			return a.Value, nil
		}
	}
	return nil, fmt.Errorf("attribute %d is missing: %w", attr, syscall.ENOENT)
}

// checkForwarding reads back the bridge's static entry for mac.
func checkForwarding(port int, mac net.HardwareAddr) error {
	n, err := getNeighbour(
		&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(port), Flags: netlink.NTF_MASTER},
		nl.NewRtAttr(netlink.NDA_LLADDR, mac),
	)
	if err != nil {
		return err
	}
	if n.LinkIndex != port || n.State&netlink.NUD_NOARP == 0 {
		return errors.New("the entry is not static or names another port")
	}
	return nil
}

// checkNeighbour reads back the permanent neighbour entry of addr.
func checkNeighbour(bridge int, addr netip.Addr, mac net.HardwareAddr) error {
	n, err := getNeighbour(
		&netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(bridge)},
		nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()),
	)
	if err != nil {
		return err
	}
	if n.HardwareAddr.String() != mac.String() || n.State != netlink.NUD_PERMANENT {
		return errors.New("the entry is not permanent or names another MAC")
	}
	return nil
}

func getNeighbour(of *netlink.Ndmsg, key *nl.RtAttr) (*netlink.Neigh, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(of)
	req.AddData(key)
	replies, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, err
	}
	if len(replies) != 1 {
		return nil, fmt.Errorf("%d replies to a request about one entry", len(replies))
	}
	return netlink.NeighDeserialize(replies[0])
}
