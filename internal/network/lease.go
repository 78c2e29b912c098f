package network

import (
	"net"
	"net/netip"
	"time"
)

// Lease is what a host has reserved for one VM. Every non-zero field is unique among
// all leases of the host. The zero Lease reserves nothing; without a network only
// UID is set.
type Lease struct {
	Address netip.Addr
	MAC     net.HardwareAddr
	Tap     string // interface name, ≤ 15 bytes
	SSHPort int    // of the host
	UID     int    // of the VMM process
}

// Pools are the ranges that leases come from. Both ends are included.
type Pools struct {
	Network        Network
	SSHMin, SSHMax int // host ports
	UIDMin, UIDMax int // user ids
	TapPrefix      string

	// CoolDown is how long an address or SSH port stays out of use after its release; 0
	// means not at all. If nothing else is free, what was released first is used after
	// all. The owner of the former VM may request its address at once.
	CoolDown time.Duration

	// SSHBusy reports that another process of the host listens on a port, which
	// is passed over then; nil means that none does. It may be called inside the
	// transaction and must be quick.
	SSHBusy func(port int) bool
}

// Request is what a lease must contain. Invalid or nil values mean: any.
type Request struct {
	Address netip.Addr
	MAC     net.HardwareAddr
}
