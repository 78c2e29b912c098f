package link

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
)

// startWatch looks after the rules until Close. Starting again is no error.
func (l *Links) startWatch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.watch.Go(func() { l.keepRules(ctx) })
}

func (l *Links) keepRules(ctx context.Context) {
	tick := time.NewTicker(l.cfg.WatchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := l.mend(); err != nil {
				l.cfg.Log.Error("cannot mend the packet rules", "network", l.String(), "error", err)
			}
		}
	}
}

// mend puts the rules in force again when they are not as they must be, and
// tells them when the host is on other networks than before.
func (l *Links) mend() error {
	if broken := l.rules.Check(); broken != nil {
		l.cfg.Log.Warn("the packet rules were changed by somebody else; putting them in force again", "network", l.String(), "found", broken.Error())
		return l.renewRules()
	}
	local, err := localNetworks(l.cfg.Network)
	if err != nil {
		return err
	}
	if slices.Equal(local, l.knownLocal()) {
		return nil
	}
	return l.setLocal(local)
}

// renewRules sets the rules up with the VMs that are live.
func (l *Links) renewRules() error {
	local, err := localNetworks(l.cfg.Network)
	if err != nil {
		return err
	}
	l.setup.Lock()
	defer l.setup.Unlock()
	l.mu.Lock()
	live := slices.Collect(maps.Values(l.live))
	l.local = local
	l.mu.Unlock()
	return l.rules.Setup(guests(live), local)
}

func (l *Links) setLocal(local []netip.Prefix) error {
	l.setup.Lock()
	defer l.setup.Unlock()
	if err := l.rules.SetLocal(local); err != nil {
		return fmt.Errorf("cannot keep guests from the host's networks: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.local = local
	return nil
}

func (l *Links) knownLocal() []netip.Prefix {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.local
}

// track replaces what is known of live VMs.
func (l *Links) track(live []vm.Link, local []netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.local = local
	clear(l.live)
	for _, v := range live {
		l.live[v.Tap] = v
	}
}
