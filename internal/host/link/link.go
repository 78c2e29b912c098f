// Package link connects VMs to the network: it composes bridge and TAPs, packet
// rules, DHCP and DNS, and implements network.Attacher with them.
//
// While it is set up it watches bridge, ports and rules: it restores what another
// program has changed, as soon as the kernel reports the change, and updates the rules
// when the host has joined another network.
// Bridge, TAPs and rules outlive the daemon: they stay when it is closed.
//
// It reserves no addresses (internal/store) and forwards no ports
// (internal/server/portgate). Start at [Links].
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/host/bridge"
	"github.com/hatchvm/hatch/internal/host/dhcp"
	"github.com/hatchvm/hatch/internal/host/dns"
	"github.com/hatchvm/hatch/internal/host/nft"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
)

var _ network.Attacher = (*Links)(nil)

// Config describes the network.
type Config struct {
	Network network.Network
	// AllowPrivate are private ranges that guests may reach.
	AllowPrivate []netip.Prefix
	Table        string        // of the packet rules; "" means nft.DefaultTable
	MTU          int           // bytes; 0 means 1500, or the uplink's if that is less
	LeaseTime    time.Duration // of DHCP; 0 means dhcp.DefaultLeaseTime
	ResolvConf   string        // the host's resolvers; "" means dns.DefaultResolvConf
	WatchEvery   time.Duration // between checks of rules and ports; 0 means 5 s
	Flows        int           // connections of a guest at a time; 0 means a share of the host's table
	APIPort      uint16        // of hatchd, not tracked on loopback; 0 means none
	Log          *slog.Logger
}

const defaultWatchInterval = 5 * time.Second

// Links connects VMs to one network. Its methods may be called from several
// goroutines at once.
type Links struct {
	cfg    Config
	bridge ports
	rules  rules
	dhcp   leases
	dns    *dns.Server

	mu     sync.Mutex
	live   map[string]network.Link // by TAP: attached, and not detached since
	joined map[string]bool         // by TAP: on the bridge, put there by this process
	unused map[netip.Addr]bool     // without a VM since their connections were ended
	local  []netip.Prefix          // networks of the host in the rules
	routes bool                    // the host forwarded packets before
	broken error                   // why the watch could not repair the network
	served int                     // index of the bridge that DHCP and DNS listen on
	stop   context.CancelFunc      // of the watch; nil while not set up
	watch  sync.WaitGroup
	// setup is held for writing to replace all rules or to repair a port, for reading
	// to connect or disconnect one guest.
	setup sync.RWMutex
}

// ports, rules and leases are what Attach composes; tests make them fail.
type ports interface {
	Ensure() error
	Routes() (bool, error)
	Check() error
	Remove() error
	Join(bridge.Port) error
	CheckPort(bridge.Port) error
	Leave(bridge.Port) error
	Traffic(tap string) (bridge.Traffic, error)
}

type rules interface {
	Setup(nft.State) error
	ForgetsEarly() bool
	Check(nft.State) error
	Remove() error
	SetLocal([]netip.Prefix) error
	Add(nft.Guest) error
	Delete(nft.Guest) error
	Close() error
}

type leases interface {
	Start(context.Context) error
	Check() error
	Close() error
	Set(dhcp.Lease)
	Delete(net.HardwareAddr)
}

// New returns the network's links. Nothing on the host changes before Setup.
func New(cfg Config) *Links {
	if cfg.MTU == 0 {
		cfg.MTU = uplinkMTU()
	}
	if cfg.WatchEvery == 0 {
		cfg.WatchEvery = defaultWatchInterval
	}
	n := cfg.Network
	return &Links{
		cfg:    cfg,
		live:   map[string]network.Link{},
		joined: map[string]bool{},
		unused: map[netip.Addr]bool{},
		bridge: bridge.New(n, cfg.MTU),
		rules: nft.New(nft.Config{
			Network: n, AllowPrivate: cfg.AllowPrivate, Table: cfg.Table, Flows: cfg.Flows, APIPort: cfg.APIPort,
		}),
		routes: true,
		dhcp:   dhcp.New(dhcp.Config{Network: n, MTU: cfg.MTU, LeaseTime: cfg.LeaseTime, Log: cfg.Log}),
		dns: dns.New(dns.Config{
			Address: netip.AddrPortFrom(n.Gateway, 53), Interface: n.Bridge,
			Clients: n.Prefix, ResolvConf: cfg.ResolvConf, Log: cfg.Log,
		}),
	}
}

// Setup makes bridge and rules, those of the live VMs included, and starts DHCP
// and DNS. It may be called again.
//
// Errors: errs.Conflict when the bridge's name, its address or the tables of
// the rules are in use by another program.
func (l *Links) Setup(ctx context.Context, live []network.Link) error {
	// The rules come first: they apply to interfaces that do not exist yet, and
	// no frame may pass without them.
	if err := l.setRules(func() []network.Link { return live }); err != nil {
		return err
	}
	if !l.rules.ForgetsEarly() {
		l.cfg.Log.Warn("this kernel cannot forget guests' connections early (CONFIG_NF_CONNTRACK_TIMEOUT); they are only limited in number", logkey.Network, l.String())
	}
	if err := l.bridge.Ensure(); err != nil {
		return err
	}
	for _, v := range live {
		l.dhcp.Set(lease(v))
	}
	if err := l.startServers(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop == nil {
		if err := l.startWatch(); err != nil {
			return err
		}
	}
	return nil
}

// Check reads back bridge, ports and rules, and checks that the servers run.
func (l *Links) Check() error {
	l.mu.Lock()
	broken := l.broken
	l.mu.Unlock()
	return errors.Join(broken, l.bridge.Check(), l.checkRules(), l.checkPorts(), l.checkServers())
}

// startServers starts DHCP and DNS unless they run. They listen on the interface that
// has the bridge's name now.
func (l *Links) startServers(ctx context.Context) error {
	listensOn, err := net.InterfaceByName(l.cfg.Network.Bridge)
	if err != nil {
		return fmt.Errorf("cannot look up %s: %w", l.cfg.Network.Bridge, err)
	}
	if err := errors.Join(l.dhcp.Start(ctx), l.dns.Start(ctx)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.served = listensOn.Index
	return nil
}

func (l *Links) checkServers() error {
	listensOn, err := net.InterfaceByName(l.cfg.Network.Bridge)
	if err != nil {
		return fmt.Errorf("cannot look up %s: %w", l.cfg.Network.Bridge, err)
	}
	l.mu.Lock()
	served := l.served
	l.mu.Unlock()
	if served != listensOn.Index {
		return fmt.Errorf("DHCP and DNS are not served on %s", l.cfg.Network.Bridge)
	}
	return errors.Join(l.dhcp.Check(), l.dns.Check())
}

// Close stops DHCP and DNS. Bridge, TAPs and rules stay, so that VMs keep
// their network without the daemon.
func (l *Links) Close() error {
	l.mu.Lock()
	stop := l.stop
	l.stop = nil
	l.mu.Unlock()
	if stop != nil {
		stop()
	}
	l.watch.Wait()
	return errors.Join(l.dhcp.Close(), l.dns.Close(), l.rules.Close())
}

// Teardown removes everything that Setup made, TAPs of live VMs included: their
// network ends. Nothing to remove is no error. Precondition: closed or never set up.
func (l *Links) Teardown() error {
	// The bridge goes first: without it the rules protect nothing.
	if err := l.bridge.Remove(); err != nil {
		return err
	}
	return errors.Join(l.rules.Remove(), l.rules.Close())
}

// setRules replaces all rules. list returns the live VMs; it is called while no
// VM can be attached or detached.
func (l *Links) setRules(list func() []network.Link) error {
	local, err := localNetworks(l.cfg.Network)
	if err != nil {
		return err
	}
	l.setup.Lock()
	defer l.setup.Unlock()
	routes, err := l.bridge.Routes()
	if err != nil {
		return err
	}
	live := list()
	l.mu.Lock()
	l.routes = l.routes && routes // a deleted bridge no longer says that it was off
	routes = l.routes
	l.mu.Unlock()
	if err := l.rules.Setup(state(live, local, routes)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.local = local
	clear(l.live)
	for _, v := range live {
		l.live[v.Tap] = v
	}
	return nil
}

// Attach implements network.Attacher.
func (l *Links) Attach(ctx context.Context, v network.Link) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.endConnections(v) // of an earlier VM with this address that hatchd did not see end
	// The TAP comes first: everything undone after it is ours.
	tap, err := bridge.OpenTAP(v.Tap)
	if err != nil {
		return nil, err
	}
	if err := l.connect(v); err != nil {
		_ = tap.Close() // which deletes the TAP
		return nil, errors.Join(err, l.disconnect(v))
	}
	return tap, nil
}

// Reattach implements network.Attacher. A VM that cannot be isolated can send
// nothing until it is reattached or detached.
func (l *Links) Reattach(ctx context.Context, v network.Link) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.connect(v); err != nil {
		l.setup.RLock()
		defer l.setup.RUnlock()
		l.dhcp.Delete(v.MAC)
		return errors.Join(err, l.forbid(v))
	}
	return nil
}

// Detach implements network.Attacher.
func (l *Links) Detach(_ context.Context, v network.Link) error {
	err := l.disconnect(v)
	l.endConnections(v)
	return err
}

// endConnections ends the connections of a VM, unless they go on when it wakes, or were
// ended already: the kernel goes through those of the whole host. A failure does not
// stop VMs: addresses stay out of use for some time.
func (l *Links) endConnections(v network.Link) {
	l.mu.Lock()
	unused := l.unused[v.Address]
	l.mu.Unlock()
	if v.Asleep || unused {
		return
	}
	if err := endConnections(v.Address); err != nil {
		l.cfg.Log.Warn("connections of a vm may outlive it", logkey.VM, v.VMID, logkey.Error, err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unused[v.Address] = true
}

// connect allows the VM's addresses before its port is up.
func (l *Links) connect(v network.Link) error {
	l.setup.RLock()
	defer l.setup.RUnlock()
	l.dhcp.Set(lease(v))
	l.mu.Lock()
	l.live[v.Tap] = v
	delete(l.unused, v.Address)
	l.mu.Unlock()
	if err := l.rules.Add(guest(v)); err != nil {
		return err
	}
	if err := l.bridge.Join(port(v)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.joined[v.Tap] = true
	return nil
}

// disconnect undoes connect, also one that failed half-way.
func (l *Links) disconnect(v network.Link) error {
	l.setup.RLock()
	defer l.setup.RUnlock()
	left := l.bridge.Leave(port(v))
	forbidden := l.forbid(v)
	l.dhcp.Delete(v.MAC)
	return errors.Join(left, forbidden)
}

// forbid drops what comes from the VM. Precondition: setup is held.
func (l *Links) forbid(v network.Link) error {
	l.mu.Lock()
	delete(l.live, v.Tap)
	delete(l.joined, v.Tap)
	l.mu.Unlock()
	return l.rules.Delete(guest(v))
}

func state(live []network.Link, local []netip.Prefix, routes bool) nft.State {
	guests := make([]nft.Guest, 0, len(live))
	for _, v := range live {
		guests = append(guests, guest(v))
	}
	return nft.State{Guests: guests, Local: local, NoRouting: !routes}
}

func guest(v network.Link) nft.Guest {
	return nft.Guest{
		TAP: v.Tap, MAC: v.MAC, Address: v.Address, Asleep: v.Asleep,
		Limits: nft.Limits{In: v.In.BytesPerSecond, Out: v.Out.BytesPerSecond},
	}
}

func port(v network.Link) bridge.Port { return bridge.Port{TAP: v.Tap, MAC: v.MAC, Address: v.Address} }

func lease(v network.Link) dhcp.Lease {
	return dhcp.Lease{MAC: v.MAC, Address: v.Address, Hostname: v.Hostname}
}

// String names the network for logs.
func (l *Links) String() string {
	return fmt.Sprintf("%s on %s", l.cfg.Network.Prefix, l.cfg.Network.Bridge)
}
