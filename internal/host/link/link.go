// Package link connects VMs to the network: it composes bridge and TAPs, packet
// rules, DHCP and DNS, and implements network.Attacher with them.
//
// While it is set up it watches the rules: it restores them when another program
// has flushed them, and updates them when the host has joined another network.
// Bridge, TAPs and rules outlive the daemon: they stay when it is closed.
//
// It reserves no addresses (internal/store) and forwards no ports
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
	WatchEvery   time.Duration // between checks of the rules; 0 means 5 s
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

	mu    sync.Mutex
	live  map[string]network.Link // by TAP: attached, and not detached since
	local []netip.Prefix          // networks of the host in the rules
	stop  context.CancelFunc      // of the watch; nil while not set up
	watch sync.WaitGroup
	// setup is held for writing to replace all rules, for reading to change
	// those of one guest.
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
		cfg.WatchEvery = defaultWatchInterval
	}
	n := cfg.Network
	return &Links{
		cfg:    cfg,
		live:   map[string]network.Link{},
		bridge: bridge.New(n, cfg.MTU),
		rules:  nft.New(nft.Config{Network: n, AllowPrivate: cfg.AllowPrivate, Table: cfg.Table}),
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop == nil {
		watching, cancel := context.WithCancel(context.Background())
		l.stop = cancel
		l.watch.Go(func() { l.watchRules(watching) })
	}
	return nil
}

// Check reads back bridge and rules, and checks that the servers run.
func (l *Links) Check() error {
	return errors.Join(l.bridge.Check(), l.rules.Check(), l.dhcp.Check(), l.dns.Check())
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
	live := list()
	guests := make([]nft.Guest, 0, len(live))
	for _, v := range live {
		guests = append(guests, guest(v))
	}
	if err := l.rules.Setup(guests, local); err != nil {
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
		l.dhcp.Delete(v.MAC)
		return errors.Join(err, l.forbid(v))
	}
	return nil
}

// Detach implements network.Attacher.
func (l *Links) Detach(_ context.Context, v network.Link) error { return l.disconnect(v) }

// connect allows the VM's addresses before its port is up.
func (l *Links) connect(v network.Link) error {
	l.dhcp.Set(lease(v))
	if err := l.allow(v); err != nil {
		return err
	}
	return l.bridge.Join(port(v))
}

// disconnect undoes connect, also one that failed half-way.
func (l *Links) disconnect(v network.Link) error {
	left := l.bridge.Leave(port(v))
	forbidden := l.forbid(v)
	l.dhcp.Delete(v.MAC)
	return errors.Join(left, forbidden)
}

func (l *Links) allow(v network.Link) error {
	l.setup.RLock()
	defer l.setup.RUnlock()
	l.mu.Lock()
	l.live[v.Tap] = v
	l.mu.Unlock()
	return l.rules.Add(guest(v))
}

func (l *Links) forbid(v network.Link) error {
	l.setup.RLock()
	defer l.setup.RUnlock()
	l.mu.Lock()
	delete(l.live, v.Tap)
	l.mu.Unlock()
	return l.rules.Delete(guest(v))
}

func guest(v network.Link) nft.Guest {
	return nft.Guest{TAP: v.Tap, MAC: v.MAC, Address: v.Address, Limits: nft.Limits{In: v.In.BytesPerSecond, Out: v.Out.BytesPerSecond}}
}

func port(v network.Link) bridge.Port { return bridge.Port{TAP: v.Tap, MAC: v.MAC, Address: v.Address} }

func lease(v network.Link) dhcp.Lease {
	return dhcp.Lease{MAC: v.MAC, Address: v.Address, Hostname: v.Hostname}
}

// String names the network for logs.
func (l *Links) String() string {
	return fmt.Sprintf("%s on %s", l.cfg.Network.Prefix, l.cfg.Network.Bridge)
}
