// Package link gives VMs their place on the network: it composes bridge and
// TAPs, packet rules, DHCP and DNS, and implements vm.Network with them.
//
// While it is set up it looks after the rules: when somebody else's reload has
// flushed them, or the host has joined another network, it puts them right.
// What must outlive the daemon (bridge, TAPs, rules) stays when it is closed.
//
// It allots no addresses (internal/store) and forwards no ports
// (internal/server/sshgate). Start at [Links].
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
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

// Links implements the place of VMs on the network.
var _ vm.Network = (*Links)(nil)

// Config says what the network is.
type Config struct {
	Network network.Network
	// AllowPrivate are private ranges that guests may reach all the same.
	AllowPrivate []netip.Prefix
	Table        string        // of the packet rules; "" means nft.DefaultTable
	MTU          int           // bytes; 0 means 1500, or the uplink's if that is less
	LeaseTime    time.Duration // of DHCP; 0 means dhcp.DefaultLeaseTime
	ResolvConf   string        // the host's resolvers; "" means dns.DefaultResolvConf
	WatchEvery   time.Duration // between looks at the rules; 0 means 5 s
	Log          *slog.Logger
}

const defaultWatch = 5 * time.Second

// Links connects VMs to one network. Its methods may be called from several
// goroutines at once.
type Links struct {
	cfg    Config
	bridge ports
	rules  rules
	dhcp   leases
	dns    *dns.Server

	mu    sync.Mutex
	live  map[string]vm.Link // by TAP: attached, and not detached since
	local []netip.Prefix     // networks of the host that the rules know
	stop  context.CancelFunc // of the watch; nil while not set up
	watch sync.WaitGroup
	// setup keeps the rules' replacement apart from single guests' changes:
	// many change, one replaces.
	setup sync.RWMutex
}

// ports, rules and leases are what Attach composes; tests make them fail.
type ports interface {
	Ensure() error
	Check() error
	Remove() error
	Join(bridge.Port) error
	Leave(bridge.Port) error
	Traffic(tap string) (bridge.Traffic, error)
}

type rules interface {
	Setup([]nft.Guest, []netip.Prefix) error
	Check() error
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
		cfg.WatchEvery = defaultWatch
	}
	n := cfg.Network
	return &Links{
		cfg:    cfg,
		live:   map[string]vm.Link{},
		bridge: bridge.New(n, cfg.MTU),
		rules:  nft.New(nft.Config{Network: n, AllowPrivate: cfg.AllowPrivate, Table: cfg.Table}),
		dhcp:   dhcp.New(dhcp.Config{Network: n, MTU: cfg.MTU, LeaseTime: cfg.LeaseTime, Log: cfg.Log}),
		dns: dns.New(dns.Config{
			Address: netip.AddrPortFrom(n.Gateway, 53), Interface: n.Bridge,
			Clients: n.Prefix, ResolvConf: cfg.ResolvConf, Log: cfg.Log,
		}),
	}
}

// Setup makes bridge and rules, with the rules for the VMs that live already
// in force at once, and starts DHCP and DNS. It may be called again.
//
// Errors: errs.Conflict when the bridge's name, its address or the tables of
// the rules belong to somebody else.
func (l *Links) Setup(ctx context.Context, live []vm.Link) error {
	// The rules come first: they hold for interfaces that do not exist yet, and
	// no frame shall pass without them.
	if err := l.setRules(live); err != nil {
		return err
	}
	if err := l.bridge.Ensure(); err != nil {
		return err
	}
	for _, v := range live {
		l.dhcp.Set(lease(v))
	}
	if err := l.dhcp.Start(ctx); err != nil {
		return err
	}
	if err := l.dns.Start(ctx); err != nil {
		return err
	}
	l.startWatch()
	return nil
}

// Check reads back that bridge, rules and servers are as they must be.
func (l *Links) Check() error {
	return errors.Join(l.bridge.Check(), l.rules.Check(), l.dhcp.Check(), l.dns.Check())
}

// Close stops DHCP and DNS. Bridge, TAPs and rules stay, so that VMs keep
// their network while the daemon is away.
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

// Teardown removes all that Setup made, TAPs of live VMs included: their
// network ends. Nothing there is no error. Precondition: closed or never set up.
func (l *Links) Teardown() error {
	// The bridge goes first: without it there is nothing the rules must guard.
	if err := l.bridge.Remove(); err != nil {
		return err
	}
	return errors.Join(l.rules.Remove(), l.rules.Close())
}

// setRules puts the rules in force with exactly these VMs.
func (l *Links) setRules(live []vm.Link) error {
	local, err := localNetworks(l.cfg.Network)
	if err != nil {
		return err
	}
	l.setup.Lock()
	defer l.setup.Unlock()
	if err := l.rules.Setup(guests(live), local); err != nil {
		return err
	}
	l.track(live, local)
	return nil
}

// Attach implements vm.Network.
func (l *Links) Attach(ctx context.Context, v vm.Link) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The TAP is claimed first: from here on, all that is undone is ours.
	tap, err := bridge.OpenTAP(v.Tap)
	if err != nil {
		return nil, err
	}
	if err := l.connect(v); err != nil {
		_ = tap.Close() // the TAP goes with it
		return nil, errors.Join(err, l.disconnect(v))
	}
	return tap, nil
}

// Reattach implements vm.Network. A VM that cannot be isolated gets nothing
// out of its TAP until it is reattached or detached.
func (l *Links) Reattach(ctx context.Context, v vm.Link) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.connect(v); err != nil {
		l.dhcp.Delete(v.MAC)
		return errors.Join(err, l.forbid(v))
	}
	return nil
}

// Detach implements vm.Network.
func (l *Links) Detach(_ context.Context, v vm.Link) error { return l.disconnect(v) }

// connect lets the VM's own addresses out before its port is up.
func (l *Links) connect(v vm.Link) error {
	l.dhcp.Set(lease(v))
	if err := l.allow(v); err != nil {
		return err
	}
	return l.bridge.Join(port(v))
}

// disconnect undoes all of connect, whatever part of it was done.
func (l *Links) disconnect(v vm.Link) error {
	left := l.bridge.Leave(port(v))
	forbidden := l.forbid(v)
	l.dhcp.Delete(v.MAC)
	return errors.Join(left, forbidden)
}

func (l *Links) allow(v vm.Link) error {
	l.setup.RLock()
	defer l.setup.RUnlock()
	l.remember(v)
	return l.rules.Add(guest(v))
}

func (l *Links) forbid(v vm.Link) error {
	l.setup.RLock()
	defer l.setup.RUnlock()
	l.forget(v)
	return l.rules.Delete(guest(v))
}

func (l *Links) remember(v vm.Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live[v.Tap] = v
}

func (l *Links) forget(v vm.Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.live, v.Tap)
}

func guests(live []vm.Link) []nft.Guest {
	gs := make([]nft.Guest, 0, len(live))
	for _, v := range live {
		gs = append(gs, guest(v))
	}
	return gs
}

func guest(v vm.Link) nft.Guest {
	return nft.Guest{TAP: v.Tap, MAC: v.MAC, Address: v.Address, Limits: nft.Limits{In: v.In.BytesPerSecond, Out: v.Out.BytesPerSecond}}
}

func port(v vm.Link) bridge.Port { return bridge.Port{TAP: v.Tap, MAC: v.MAC, Address: v.Address} }

func lease(v vm.Link) dhcp.Lease {
	return dhcp.Lease{MAC: v.MAC, Address: v.Address, Hostname: v.Hostname}
}

// String names the network for logs.
func (l *Links) String() string {
	return fmt.Sprintf("%s on %s", l.cfg.Network.Prefix, l.cfg.Network.Bridge)
}
