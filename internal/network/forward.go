package network

import (
	"net/netip"
	"slices"

	"github.com/hatchvm/hatch/internal/errs"
)

// ForwardKind says what a forward is for.
type ForwardKind string

// The kinds.
const (
	ForwardSSH  ForwardKind = "ssh"  // of the guest's SSH server, through its network only
	ForwardPort ForwardKind = "port" // published; through the guest's network, or its agent
)

// Forward is a listener on the host that leads to a port of a guest.
type Forward struct {
	Kind    ForwardKind
	Host    int            // port of the host
	Guest   int            // port of the guest
	Address netip.Addr     // of the guest; invalid without a network
	Allowed []netip.Prefix // networks that may connect; nil: those of the operator's choice for the kind
}

// Equal reports whether both lead to the same port for the same clients.
func (f Forward) Equal(g Forward) bool {
	return f.Kind == g.Kind && f.Host == g.Host && f.Guest == g.Guest && f.Address == g.Address && slices.Equal(f.Allowed, g.Allowed)
}

// PortInUse is the error of a host port that another program listens on.
func PortInUse(port int) *errs.Error {
	return errs.New(errs.Conflict, "port_in_use", "ports: the host port %d is in use by another program of this host", port).
		WithField("ports").WithHint("give another host port, or leave host out to get a free one; who listens: ss -ltnp 'sport = :%d'", port)
}

// Forwarder owns the listeners on the host that lead to ports of guests.
type Forwarder interface {
	// Forward makes these the forwards of the VM: it listens for those that are not open,
	// closes all others, with their connections, and leaves the rest alone. After an
	// error it has opened those that it could. Errors: errs.Conflict with code
	// ssh_port_in_use or port_in_use.
	Forward(vmID string, forwards []Forward) error
}
