package link

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
)

// watchRules repairs the rules until ctx is done.
func (l *Links) watchRules(ctx context.Context) {
	tick := time.NewTicker(l.cfg.WatchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := l.repair(); err != nil {
				l.cfg.Log.Error("cannot repair the packet rules", logkey.Network, l.String(), logkey.Error, err)
			}
		}
	}
}

// repair restores rules that another program changed, and updates them when the
// host's networks have changed.
func (l *Links) repair() error {
	if broken := l.rules.Check(); broken != nil {
		l.cfg.Log.Warn("another program changed the packet rules; restoring them", logkey.Network, l.String(), "found", broken.Error())
		return l.setRules(func() []network.Link {
			l.mu.Lock()
			defer l.mu.Unlock()
			return slices.Collect(maps.Values(l.live))
		})
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
