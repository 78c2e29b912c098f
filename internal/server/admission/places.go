// Package admission bounds what clients can use of hatchd before, and beside, what
// their requests do: connections, bytes of bodies, tries of keys, lines of the log.
//
// It knows neither HTTP nor SSH: the doors ask it, and answer by themselves. Nothing
// here waits, and all tables are bounded. A client is an IP address, or a network of
// addresses that one client commands. Start at [Places] and [Listener]; shares.go
// bounds what one user uses, rates.go how often a key calls, tries.go how often a client presents wrong keys,
// and log.go how many lines clients can cause.
package admission

import (
	"net"
	"net/netip"
	"sync"
)

// Client is where connections come from: an IPv4 address, or the /64 of an IPv6 one,
// which one client gets as a whole. All of this host's loopback addresses are one
// client, the zero Client.
type Client struct{ network netip.Prefix }

// Local is the client that all processes of this host are. A reverse proxy on it
// passes on requests of many clients.
var Local = Client{}

// ClientOf returns the client that an address of a connection belongs to. An address
// that is not IP, such as that of a UNIX socket, is of this host.
func ClientOf(addr net.Addr) Client {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return Local
	}
	return ClientAt(tcp.AddrPort().Addr())
}

// AddressOf returns the address of a peer that is an address and a port, the zero one for any
// other text.
func AddressOf(peer string) netip.Addr {
	addr, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Addr().Unmap()
}

// ClientAt is ClientOf for an IP address. The zero Addr is of this host.
func ClientAt(ip netip.Addr) Client {
	ip = ip.Unmap().WithZone("")
	if !ip.IsValid() || ip.IsLoopback() {
		return Local
	}
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	network, err := ip.Prefix(bits)
	if err != nil { // there is none for these numbers of bits
		return Local
	}
	return Client{network}
}

// String returns the client's network, for the log.
func (c Client) String() string {
	if c == Local {
		return "loopback"
	}
	if c.network.Addr().Is4() {
		return c.network.Addr().String()
	}
	return c.network.String()
}

// Places bounds how many connections there are at a time. One client cannot take all
// places, and neither can all clients of the network those that are for this host's
// own processes, nor the reverse.
type Places struct {
	limits PlaceLimits

	mu     sync.Mutex
	remote int            // taken by clients of the network
	taken  map[Client]int // all of them positive
}

// PlaceLimits are numbers of connections, all positive.
type PlaceLimits struct {
	Total     int
	PerClient int // of a client of the network
}

// reserved returns how many places each of the two groups, clients of the network and
// processes of this host, cannot take from the other.
func (l PlaceLimits) reserved() int { return (l.Total + 7) / 8 }

// NewPlaces returns free places.
func NewPlaces(limits PlaceLimits) *Places {
	return &Places{limits: limits, taken: map[Client]int{}}
}

// Take takes a place. ok = false means that there is none for this client; else the
// caller must call free once the connection is closed. free may be called again.
func (p *Places) Take(client Client) (free func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.fitsLocked(client) {
		return nil, false
	}
	p.addLocked(client, 1)
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.addLocked(client, -1)
	}), true
}

func (p *Places) fitsLocked(client Client) bool {
	local := p.taken[Local]
	group := local
	if client != Local {
		if p.taken[client] >= p.limits.PerClient {
			return false
		}
		group = p.remote
	}
	return local+p.remote < p.limits.Total && group < max(1, p.limits.Total-p.limits.reserved())
}

func (p *Places) addLocked(client Client, n int) {
	if client != Local {
		p.remote += n
	}
	if p.taken[client] += n; p.taken[client] == 0 {
		delete(p.taken, client)
	}
}
