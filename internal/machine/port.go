package machine

import (
	"net/netip"
	"regexp"
	"slices"

	"github.com/hatchvm/hatch/internal/errs"
)

// Limits on published ports.
const (
	MaxPorts        = 64 // of one VM
	MaxPortNetworks = 32 // that may connect to one port
	maxPortNumber   = 65535
)

// Port is a TCP port of the guest that is published on the host.
type Port struct {
	Guest   int            `json:"guest"`
	Host    int            `json:"host,omitempty"`          // 0: hatchd chooses one
	Allowed []netip.Prefix `json:"allowed_cidrs,omitempty"` // networks that may connect; nil: those of the operator's choice
	Name    string         `json:"name,omitempty"`
}

// Equal reports whether both publish the same in the same way.
func (p Port) Equal(q Port) bool {
	return p.Guest == q.Guest && p.Host == q.Host && p.Name == q.Name && slices.Equal(p.Allowed, q.Allowed)
}

// clonePorts returns a copy that shares no memory with the ports.
func clonePorts(ports []Port) []Port {
	ports = slices.Clone(ports)
	for i := range ports {
		ports[i].Allowed = slices.Clone(ports[i].Allowed)
	}
	return ports
}

var portNameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (s Spec) checkPorts() error {
	if len(s.Ports) > MaxPorts {
		return tooMany("ports", len(s.Ports), MaxPorts)
	}
	guests, hosts, names := map[int]bool{}, map[int]bool{}, map[string]bool{}
	for i, p := range s.Ports {
		if err := p.check(i + 1); err != nil {
			return err
		}
		switch {
		case guests[p.Guest]:
			return errs.InvalidField("ports", "entry %d publishes the guest's port %d a second time; give each port of the guest once", i+1, p.Guest)
		case p.Host != 0 && hosts[p.Host]:
			return errs.InvalidField("ports", "entry %d has the same host port as another, %d; give each its own, or leave host out", i+1, p.Host)
		case p.Name != "" && names[p.Name]:
			return errs.InvalidField("ports", "entry %d has the same name as another, %q; give each its own", i+1, p.Name)
		}
		guests[p.Guest], hosts[p.Host], names[p.Name] = true, true, true
	}
	return nil
}

// check checks one port, the n-th of its list.
func (p Port) check(n int) error {
	switch {
	case p.Guest < 1 || p.Guest > maxPortNumber:
		return errs.InvalidField("ports", "entry %d: guest is %d; want a port from 1 to %d", n, p.Guest, maxPortNumber)
	case p.Host < 0 || p.Host > maxPortNumber:
		return errs.InvalidField("ports", "entry %d: host is %d; want a port from 1 to %d, or leave it out to get a free one", n, p.Host, maxPortNumber)
	case p.Allowed != nil && len(p.Allowed) == 0:
		return errs.InvalidField("ports", "entry %d: allowed_cidrs is empty, so that no client could connect; name networks, such as 192.0.2.0/24, or leave it out for the default", n)
	case len(p.Allowed) > MaxPortNetworks:
		return errs.InvalidField("ports", "entry %d: allowed_cidrs has %d networks; the limit is %d", n, len(p.Allowed), MaxPortNetworks)
	case p.Name != "" && !portNameForm.MatchString(p.Name):
		return errs.InvalidField("ports", "entry %d: the name %q is not valid: want up to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends", n, errs.Brief(p.Name))
	}
	return nil
}
