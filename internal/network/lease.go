package network

import (
	"net"
	"net/netip"
	"time"
)

// Lease is what a host has reserved for one VM. Every non-zero field is unique among
// all leases of the host, and no host port is in two of them. The zero Lease reserves
// nothing; without a network only UID and Ports are set.
type Lease struct {
	Address netip.Addr
	MAC     net.HardwareAddr
	Tap     string // interface name, ≤ 15 bytes
	SSHPort int    // of the host
	UID     int    // of the VMM process

	Ports map[int]int // published ports: of the host, by the guest's port
}

// Pools are the ranges that leases come from. Both ends are included.
type Pools struct {
	Network        Network
	SSHMin, SSHMax int // host ports
	UIDMin, UIDMax int // user ids
	TapPrefix      string

	PortMin, PortMax int // host ports for published ports that name none

	// CoolDown is how long an address or host port stays out of use after its release; 0
	// means not at all. If nothing else is free, what was released first is used after
	// all. The owner of the former VM may request its address at once.
	CoolDown time.Duration

	// PortBusy reports that another process of the host listens on a port, which
	// is passed over then; nil means that none does. It may be called inside the
	// transaction and must be quick.
	PortBusy func(port int) bool
}

// Request is what a lease must contain. Invalid or nil values mean: any.
type Request struct {
	Address netip.Addr
	MAC     net.HardwareAddr
}
