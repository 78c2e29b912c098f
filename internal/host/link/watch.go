package link

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
)

// The watch waits after each check for as long as it took, within these bounds, however
// often the kernel reports a change.
const (
	minInterval = 20 * time.Millisecond
	maxInterval = 250 * time.Millisecond
)

// startWatch begins to watch the network, until Close. Precondition: mu is held.
func (l *Links) startWatch() error {
	changes, err := listenForChanges()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.watch.Go(func() {
		defer changes.close()
		l.watchNetwork(ctx, changes.happened)
	})
	return nil
}

// watchNetwork repairs rules, bridge and ports until ctx is done: when the kernel
// reports a change, and every so often, because it does not report all.
func (l *Links) watchNetwork(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(l.cfg.WatchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
		began := time.Now()
		l.repairAndRemember()
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(time.Since(began), minInterval), maxInterval)):
		}
	}
}

// repairAndRemember repairs the network. A failure is logged once, and health says so
// until it is gone.
func (l *Links) repairAndRemember() {
	err := l.repair()
	l.mu.Lock()
	before := l.broken
	l.broken = err
	l.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		l.cfg.Log.Error("cannot repair the network", logkey.Network, l.String(), logkey.Error, err)
	}
}

// repair restores what another program changed, and updates the rules when the host's
// networks have changed. The rules come first, as in Setup.
func (l *Links) repair() error {
	if broken := l.checkRules(); broken != nil {
		l.cfg.Log.Warn("another program changed the packet rules; restoring them", logkey.Network, l.String(), logkey.Found, broken.Error())
		if err := l.setRules(l.liveLinks); err != nil {
			return err
		}
	}
	if err := l.repairBridge(); err != nil {
		return err
	}
	if err := errors.Join(l.repairPorts(), l.repairServers()); err != nil {
		return err
	}
	local, err := localNetworks(l.cfg.Network)
	if err != nil {
		return err
	}
	l.mu.Lock()
	same := slices.Equal(local, l.local)
	l.mu.Unlock()
	if same {
		return nil
	}
	return l.setLocal(local)
}

// checkRules compares the rules with what they must be. It asks again while no VM can
// be attached or detached, because one that is would look like a change.
func (l *Links) checkRules() error {
	check := func() error {
		l.mu.Lock()
		s := state(slices.Collect(maps.Values(l.live)), l.local, l.routes)
		l.mu.Unlock()
		return l.rules.Check(s)
	}
	if check() == nil {
		return nil
	}
	l.setup.Lock()
	defer l.setup.Unlock()
	return check()
}

func (l *Links) liveLinks() []network.Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.live))
}

func (l *Links) repairBridge() error {
	broken := l.bridge.Check()
	if broken == nil {
		return nil
	}
	l.cfg.Log.Warn("another program changed the bridge; restoring it", logkey.Network, l.String(), logkey.Found, broken.Error())
	return l.bridge.Ensure()
}

// repairServers starts DHCP and DNS anew if they have ended, or listen on a bridge that
// was deleted.
func (l *Links) repairServers() error {
	broken := l.checkServers()
	if broken == nil {
		return nil
	}
	l.cfg.Log.Warn("DHCP and DNS are not served; starting them anew", logkey.Network, l.String(), logkey.Found, broken.Error())
	if err := errors.Join(l.dhcp.Close(), l.dns.Close()); err != nil {
		return err
	}
	return l.startServers(context.Background()) // listening does not wait
}

// repairPorts restores the ports of attached VMs.
func (l *Links) repairPorts() error {
	var failed []error
	for _, v := range l.liveLinks() {
		if l.checkPort(v) == nil {
			continue
		}
		failed = append(failed, l.repairPort(v))
	}
	return errors.Join(failed...)
}

// repairPort restores a port that is still of an attached VM.
func (l *Links) repairPort(v network.Link) error {
	l.setup.Lock() // Attach has joined the port, or Detach has removed it
	defer l.setup.Unlock()
	broken := l.checkPort(v)
	if broken == nil {
		return nil
	}
	l.cfg.Log.Warn("another program changed a port of the bridge; restoring it", logkey.Network, l.String(), logkey.VM, v.VMID, logkey.Found, broken.Error())
	return l.bridge.Join(port(v))
}

func (l *Links) checkPorts() error {
	var failed []error
	for _, v := range l.liveLinks() {
		failed = append(failed, l.checkPort(v))
	}
	return errors.Join(failed...)
}

// checkPort checks the port of an attached VM. A port that does not exist is no
// error: its VMM has ended, and the VM is about to be detached.
func (l *Links) checkPort(v network.Link) error {
	l.mu.Lock()
	_, joined := l.joined[v.Tap]
	l.mu.Unlock()
	if !joined {
		return nil
	}
	if err := l.bridge.CheckPort(port(v)); !errs.HasCode(err, "tap_missing") {
		return err
	}
	return nil
}

func (l *Links) setLocal(local []netip.Prefix) error {
	l.setup.Lock()
	defer l.setup.Unlock()
	if err := l.rules.SetLocal(local); err != nil {
		return fmt.Errorf("cannot block guests from the host's networks: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.local = local
	return nil
}
